"""Flow `partition-model`: validate, write stage by stage, read back, compare logits, publish.

The work is `engine/weights/partitioning.py`'s; a run that was stopped goes on at the layer where it was.
"""

import os
from pathlib import Path
from typing import Any

import msgspec
import prefect

from engine.weights import partitioning
from engine.weights.partition import read_manifest
from engine.weights.partitioning import Job
from orchestration.flows.steps import show_plot, show_table, step
from server import plots


@prefect.flow(name="partition-model")
async def partition_model(stages: int, out: str, model: str = "") -> dict[str, Any]:
    """Cut MODEL (empty: the starter model), a model directory or a partition, into `stages` in the directory `out`.

    Raises ModelError or ConfigError.
    """
    job = await validate(model, stages, out)
    if partitioning.is_there_already(job):
        return {"directory": job.out, "is_new": False, "num_bytes": job.num_bytes}
    with partitioning.lock(job):
        for stage in range(stages):
            await write_stage(job, stage)
        for stage in range(stages):
            await verify_stage(job, stage)
        difference = await verify_logits(job)
        rows = await publish(job)
    await show_table("partition", rows, title=f"{job.out}, logits differ by {difference:.1g} of the largest")
    sizes = {f"stage {row['stage']}": row["num_bytes"] / 1e6 for row in rows}
    await show_plot("partition-sizes", plots.bars("Sizes of the stages", sizes, x_label="MB"))
    return {"directory": job.out, "is_new": True, "num_bytes": job.num_bytes, "logits_difference": difference}


@step(timeout_s=600)
def validate(model: str, stages: int, out: str) -> Job:
    """Look at the model, the number of stages and the goal."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # weights pass through the host: an accelerator is not to be touched
    from engine.loader import STARTER

    return partitioning.validate(Path(model) if model else STARTER, stages, Path(out))


@step(timeout_s=6 * 3600, is_heavy=True)
def write_stage(job: Job, stage: int) -> int:
    """Write what a stage lacks; return its bytes."""
    return partitioning.write_stage(job, stage)


@step(timeout_s=6 * 3600)
def verify_stage(job: Job, stage: int) -> int:
    """Read a stage back and compare checksums; return its bytes."""
    return partitioning.verify_stage(job, stage)


@step(timeout_s=6 * 3600, is_heavy=True)
def verify_logits(job: Job) -> float:
    """Compare logits, layer by layer."""
    return partitioning.verify_logits(job)


@step(timeout_s=600, retries=0)
def publish(job: Job) -> list[dict[str, Any]]:
    """Give the partition its name; return a row per stage."""
    partitioning.publish(job)
    stages = read_manifest(Path(job.out)).stages
    fields = ("first_layer", "num_layers", "first_token", "last_token")
    rows = [
        {"stage": number, **{name: getattr(stage, name) for name in fields}, "num_bytes": stage.num_bytes}
        for number, stage in enumerate(stages)
    ]
    return [dict(msgspec.to_builtins(row)) for row in rows]
