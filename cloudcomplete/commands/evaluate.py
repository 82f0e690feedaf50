"""`cloudcomplete evaluate`: how often completions are what really stood in the hole, and how soon they come."""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.evaluate import Evaluation

NAME = "evaluate"
SUMMARY = "measure completions on rows with known answers"
DESCRIPTION = (
    "Ask for the hole of every row of a JSON Lines file (prompt, suffix, canonical_solution; optional language, path, "
    "context) and compare with the solution. Without --server a server with the starter model is started and stopped "
    "again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("rows", metavar="ROWS", type=Path, help="JSON Lines, plain or gzipped")
    parser.add_argument("--server", metavar="ADDR", help="server to ask: HOST:PORT, or a URL for llama-infill")
    parser.add_argument(
        "--dialect", metavar="D", default="grpc", help="how to ask it: grpc or llama-infill; default: grpc"
    )
    parser.add_argument(
        "--client-cache", action="store_true", help="put the cache of llama.cpp's editor plugins in front of the server"
    )
    parser.add_argument(
        "--limit", metavar="N", type=_count, help="ask only N rows, a random sample that is always the same"
    )
    parser.add_argument(
        "--concurrency", metavar="N", type=_count, default=1, help="rows asked at once; default: 1, for true latencies"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="also draw latencies and sources as SVG into DIR")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """Ask all rows and report; raises RowsError, ReportError, DialectError, RunError, OwnServerError, AddressError."""
    from loadtest import report
    from loadtest.dialects import DIALECTS
    from loadtest.evaluate import Evaluation, summarise
    from loadtest.rows import read_rows, sample

    if arguments.dialect not in DIALECTS:
        arguments.fail(f"{arguments.dialect!r} is no dialect; expected one of: {', '.join(DIALECTS)}")
    if arguments.server is None and arguments.dialect != "grpc":
        arguments.fail(f"--dialect {arguments.dialect} needs --server: only a grpc server can be started here")
    if arguments.json is not None:
        report.check_writable(arguments.json)
    if arguments.plots is not None:
        report.make_directory(arguments.plots)
    read = read_rows(arguments.rows)
    evaluation = Evaluation(sample(read.usable, arguments.limit), concurrency=arguments.concurrency)
    is_interrupted = False
    try:
        _ask_all(arguments, evaluation)
    except KeyboardInterrupt:
        if not evaluation.outcomes:
            raise
        is_interrupted = True
    result = summarise(evaluation, read, command=_command(arguments))
    print(report.describe(result))
    if arguments.json is not None:
        report.write_json(arguments.json, result)
    if arguments.plots is not None:
        _write_plots(arguments, evaluation)
    if is_interrupted:
        raise KeyboardInterrupt
    _check_answers(evaluation)


def _ask_all(arguments: argparse.Namespace, evaluation: "Evaluation") -> None:
    import asyncio

    from cloudcomplete.own_server import OwnServer
    from cloudcomplete.progress import Progress, ProgressBar
    from loadtest.dialects import open_dialect
    from loadtest.evaluate import Outcome

    with contextlib.ExitStack() as stack:
        address = arguments.server
        if address is None:
            progress = Progress(sys.stderr, has_plain_lines=False)
            stack.callback(progress.end)
            address = stack.enter_context(OwnServer(on_progress=progress.show)).address
            progress.end()
        bar = ProgressBar(sys.stderr, total=len(evaluation.rows), unit="rows")
        stack.callback(bar.end)
        num_done = num_exact = num_errors = 0

        def show(outcome: Outcome) -> None:
            nonlocal num_done, num_exact, num_errors
            num_done += 1
            num_exact += outcome.is_exact_match
            num_errors += outcome.reply.error is not None
            facts = f"exact match {num_exact / num_done:.3f}" + (f", {num_errors} errors" if num_errors else "")
            bar.show(num_done, facts)

        async def ask() -> None:
            async with open_dialect(arguments.dialect, address, has_client_cache=arguments.client_cache) as dialect:
                await evaluation.run(dialect, on_outcome=show)

        asyncio.run(ask())


def _write_plots(arguments: argparse.Namespace, evaluation: "Evaluation") -> None:
    from loadtest import plots
    from loadtest.evaluate import count_sources, first_texts_ms

    latency = plots.cumulative_curve(
        "Time to first text", first_texts_ms(evaluation.outcomes), x_label="time to first text, ms (logarithmic)"
    )
    sources = plots.stacked_bars(
        "Answers by source", {arguments.dialect: count_sources(evaluation.outcomes)}, x_label="share of answers"
    )
    plots.write_plots(arguments.plots, {"latency": latency, "sources": sources})


def _check_answers(evaluation: "Evaluation") -> None:
    """Raise RunError when the run cannot stand for the server's quality, though its figures have been reported."""
    from loadtest.errors import RunError

    num_asked = len(evaluation.outcomes)
    if evaluation.given_up:
        raise RunError(f"given up after {num_asked} of {len(evaluation.rows)} rows: {evaluation.given_up}")
    if all(outcome.reply.error is not None for outcome in evaluation.outcomes):
        raise RunError(f"none of {num_asked} rows was answered; the first error: {evaluation.outcomes[0].reply.error}")


def _command(arguments: argparse.Namespace) -> str:
    """Return what decides the figures of this command line; where they are written to does not."""
    words = ["cloudcomplete", NAME, str(arguments.rows)]
    for name in ("server", "dialect", "limit", "concurrency"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    if arguments.client_cache:
        words.append("--client-cache")
    return shlex.join(words)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
