"""`cloudcomplete evaluate`: how often completions are what really stood in the hole, and how soon they come."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cloudcomplete import measurement

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
    parser.add_argument(
        "--limit",
        metavar="N",
        type=measurement.to_count,
        help="ask only N rows, a random sample that is always the same",
    )
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=measurement.to_count,
        default=1,
        help="rows asked at once; default: 1, for true latencies",
    )
    measurement.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Ask all rows and report; raises RowsError, ReportError, DialectError, RunError, OwnServerError, AddressError."""
    from loadtest.evaluate import Evaluation, summarise
    from loadtest.rows import read_rows, sample

    measurement.check(arguments)
    read = read_rows(arguments.rows)
    evaluation = Evaluation(sample(read.usable, arguments.limit), concurrency=arguments.concurrency)
    command = measurement.command_line(
        arguments,
        NAME,
        arguments.rows,
        options=("server", "dialect", "limit", "concurrency"),
        flags=("client-cache",),
    )
    measurement.conclude(
        arguments,
        lambda: _ask_all(arguments, evaluation),
        is_begun=lambda: bool(evaluation.outcomes),
        assemble=lambda: summarise(evaluation, read, command=command),
        draw=lambda: _draw(arguments, evaluation),
    )
    _check_answers(evaluation)


def _ask_all(arguments: argparse.Namespace, evaluation: "Evaluation") -> None:
    import asyncio

    from cloudcomplete.progress import ProgressBar
    from loadtest.dialects import open_dialect
    from loadtest.evaluate import Outcome

    num_done = num_exact = num_errors = 0

    async def ask(address: str, bar: ProgressBar) -> None:
        def show(outcome: Outcome) -> None:
            nonlocal num_done, num_exact, num_errors
            num_done += 1
            num_exact += outcome.is_exact_match
            num_errors += outcome.reply.error is not None
            facts = f"exact match {num_exact / num_done:.3f}" + (f", {num_errors} errors" if num_errors else "")
            bar.show(num_done, facts)

        async with open_dialect(arguments.dialect, address, has_client_cache=arguments.client_cache) as dialect:
            await evaluation.run(dialect, on_outcome=show)

    with (
        measurement.opened_server(arguments) as server,
        ProgressBar(sys.stderr, total=len(evaluation.rows), unit="rows") as bar,
    ):
        asyncio.run(ask(server.address, bar))


def _draw(arguments: argparse.Namespace, evaluation: "Evaluation") -> dict[str, bytes]:
    from loadtest.evaluate import count_sources, first_texts_ms
    from server import plots

    return {
        "latency": plots.cumulative_curve(
            "Time to first text", first_texts_ms(evaluation.outcomes), x_label="time to first text, ms (logarithmic)"
        ),
        "sources": plots.stacked_bars(
            "Answers by source", {arguments.dialect: count_sources(evaluation.outcomes)}, x_label="share of answers"
        ),
    }


def _check_answers(evaluation: "Evaluation") -> None:
    """Raise RunError when the run cannot stand for the server's quality, though its figures have been reported."""
    from loadtest.errors import RunError

    num_asked = len(evaluation.outcomes)
    if evaluation.given_up:
        raise RunError(f"given up after {num_asked} of {len(evaluation.rows)} rows: {evaluation.given_up}")
    if all(outcome.reply.error is not None for outcome in evaluation.outcomes):
        raise RunError(f"none of {num_asked} rows was answered; the first error: {evaluation.outcomes[0].reply.error}")
