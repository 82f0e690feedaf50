"""`cloudcomplete bench`: list and run the benchmarks of `loadtest.benchmarks`, compare two results."""

import argparse
from pathlib import Path

NAME = "bench"
SUMMARY = "run a benchmark, or compare two results"
DESCRIPTION = (
    "Without NAME: list the benchmarks. With NAME: run it. `bench compare A.json B.json`: compare two results "
    "that bench, replay or evaluate wrote with --json."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "cloudcomplete bench [-h] [NAME] [--json OUT] | compare A.json B.json"
    parser.add_argument("words", metavar="NAME | compare A.json B.json", nargs="*", help="what to run or to compare")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """List, run or compare; raises ReportError, or what the benchmark raises."""
    from loadtest import report

    words: list[str] = arguments.words
    if words[:1] == ["compare"]:
        if len(words) != 3:
            arguments.fail(f"compare takes two files of results, got {len(words) - 1}")
        if arguments.json is not None:
            arguments.fail("compare writes no file; expected --json only with a benchmark")
        left, right = (report.read_result(Path(word)) for word in words[1:])
        print(report.compare(left, right))
        return
    if len(words) > 1:
        arguments.fail(f"expected one benchmark, got {len(words)}: {' '.join(words)}")
    if arguments.json is not None:
        report.check_writable(arguments.json)
    from cloudcomplete import foretelling
    from loadtest.benchmarks.registry import BENCHMARKS as MEASURED
    from loadtest.benchmarks.registry import Benchmark
    from orchestration.allocator import cartpole

    learner = Benchmark(name="cartpole", summary="whether the allocator's learner learns", measure=cartpole.measure)
    foretell = Benchmark(
        name="foretell", summary="a server's latency over what the simulators foretell", measure=foretelling.measure
    )
    BENCHMARKS = {**MEASURED, learner.name: learner, foretell.name: foretell}
    if not words:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:<12}{benchmark.summary}")
        return
    if words[0] not in BENCHMARKS:
        arguments.fail(f"{words[0]!r} is no benchmark; expected one of: {', '.join(BENCHMARKS)}")
    result = BENCHMARKS[words[0]].run(on_progress=print)
    print(report.describe(result))
    if arguments.json is not None:
        report.write_json(arguments.json, result)
