"""`cloudcomplete partition`: cut a model into stages, so that each host of a mesh reads its own alone."""

import argparse
import sys
from pathlib import Path

NAME = "partition"
SUMMARY = "cut a model into stages for a pipeline mesh"
DESCRIPTION = (
    "Write MODEL, or a partition of it, as a checkpoint in N stages: layers and a share of the vocabulary each, with "
    "checksums. One layer is held in memory at a time. An interrupted run goes on where it stopped; DIR is there only "
    "when all of it was read back and computes the model's logits. `serve`, `info` and `evaluate` take DIR as a MODEL."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", type=Path, help="model directory or partition; default: the starter model"
    )
    parser.add_argument("--stages", metavar="N", type=int, required=True, help="how many stages")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where to write; must not exist")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write what was done to OUT")


def run(arguments: argparse.Namespace) -> None:
    """Partition; raises ModelError, ConfigError, ReportError."""
    import os

    # Weights pass through the host's memory: an accelerator that serves meanwhile is not to be touched.
    os.environ["JAX_PLATFORMS"] = "cpu"

    from cloudcomplete.progress import ProgressBar
    from engine.loader import STARTER
    from engine.weights.partition import read_manifest
    from engine.weights.partitioning import partition_model
    from loadtest import report

    if arguments.json is not None:
        report.check_writable(arguments.json)
    model = arguments.model or STARTER
    bar: ProgressBar | None = None

    def show(what: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = ProgressBar(sys.stderr, total=total // 1_000_000, unit="MB")
        bar.show(done // 1_000_000, what)

    try:
        done = partition_model(model, arguments.stages, arguments.out, on_progress=show)
    finally:
        if bar is not None:
            bar.end()
    manifest = read_manifest(Path(done.directory))
    for number, stage in enumerate(manifest.stages):
        print(
            f"stage {number}: layers {stage.first_layer}-{stage.first_layer + stage.num_layers - 1}, "
            f"tokens {stage.first_token:,}-{stage.last_token - 1:,}, {stage.num_bytes / 1e6:,.1f} MB"
        )
    verdict = (
        f"read back, logits differ by {done.logits_difference:.1g} of the largest" if done.is_new else "there already"
    )
    print(f"{done.directory}: {done.num_stages} stages, {done.num_bytes / 1e6:,.1f} MB, {verdict}")
    if arguments.json is not None:
        report.write_json(arguments.json, done)
