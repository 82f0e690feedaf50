"""`cloudcomplete bench`: list and run the benchmarks of `loadtest.benchmarks`, compare two results."""

import argparse
import math
from pathlib import Path
from typing import Any

NAME = "bench"
SUMMARY = "run a benchmark, or compare two results"
DESCRIPTION = (
    "Without NAME: list the benchmarks. With NAME: run it. `bench compare A.json B.json`: compare two results."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "cloudcomplete bench [-h] [NAME] [--json OUT] | compare A.json B.json"
    parser.add_argument("words", metavar="NAME | compare A.json B.json", nargs="*", help="what to run or to compare")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """List, run or compare; raises ReportError, or what the benchmark raises."""
    from cloudcomplete.report import read_json, write_json

    words: list[str] = arguments.words
    if words[:1] == ["compare"]:
        if len(words) != 3:
            arguments.fail(f"compare takes two files of results, got {len(words) - 1}")
        print(compare(*(_headline(Path(word), read_json(Path(word))) for word in words[1:])))
        return
    if len(words) > 1:
        arguments.fail(f"expected one benchmark, got {len(words)}: {' '.join(words)}")
    from loadtest.benchmarks.registry import BENCHMARKS

    if not words:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:<12}{benchmark.summary}")
        return
    if words[0] not in BENCHMARKS:
        arguments.fail(f"{words[0]!r} is no benchmark; expected one of: {', '.join(BENCHMARKS)}")
    result = BENCHMARKS[words[0]].run(on_progress=print)
    for name, value in result["headline"].items():
        print(f"{name} = {value:.4g}")
    if arguments.json is not None:
        write_json(arguments.json, result)


def compare(left: dict[str, float], right: dict[str, float]) -> str:
    """Return a table of the headline numbers of two results, with the ratio of the second to the first."""
    width = max((len(name) for name in {**left, **right}), default=0)
    lines = [f"{'':<{width}}  {'A':>12}  {'B':>12}  {'B/A':>8}"]
    for name in {**left, **right}:
        a, b = left.get(name), right.get(name)
        ratio = b / a if a and b is not None else math.nan
        cells = ("absent" if value is None else f"{value:.4g}" for value in (a, b))
        lines.append("  ".join([f"{name:<{width}}", *(f"{cell:>12}" for cell in cells), f"{ratio:8.3f}"]))
    return "\n".join(lines)


def _headline(path: Path, result: Any) -> dict[str, float]:
    from cloudcomplete.errors import ReportError

    headline = result.get("headline") if isinstance(result, dict) else None
    if not isinstance(headline, dict) or not all(isinstance(value, (int, float)) for value in headline.values()):
        raise ReportError(f"{path} has no headline of numbers; expected a file written by `bench NAME --json`")
    return headline
