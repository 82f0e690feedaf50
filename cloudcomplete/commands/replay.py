"""`cloudcomplete replay`: what a recorded editing session would have felt like with a server."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cloudcomplete import measurement

if TYPE_CHECKING:
    from loadtest.dialects import Dialect
    from loadtest.outcomes import Outcome
    from loadtest.replay import Replay
    from loadtest.verification import Verification

NAME = "replay"
SUMMARY = "replay recorded typing against a server"
DESCRIPTION = (
    "Type a recorded editing session again, at its own pace: every keystroke asks for a completion at the cursor, and "
    "the next change cancels what is still open. TRACE is an editing history (startContent, endContent, txns) or "
    "completion sessions (JSON Lines), plain or gzipped. Without --server a server with the starter model is started "
    "and stopped again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("trace", metavar="TRACE", type=Path, help="recording to replay")
    parser.add_argument(
        "--users",
        metavar="N",
        type=measurement.to_count,
        default=1,
        help="type at N places of the trace at once; default: 1",
    )
    parser.add_argument(
        "--speed",
        metavar="X",
        type=measurement.to_speed,
        default=1.0,
        help="type X times as fast as recorded; default: 1",
    )
    parser.add_argument(
        "--keystrokes",
        metavar="N",
        type=measurement.to_count,
        help="type N consecutive keystrokes per user; default: the whole trace",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=measurement.to_seed,
        default=0,
        help="chooses the places; the same seed, the same requests",
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=measurement.to_count, help="most tokens of an answer; default: the server's"
    )
    parser.add_argument("--path", metavar="PATH", default="", help="path of the file as the server is told")
    parser.add_argument(
        "--verify", action="store_true", help="afterwards ask the model afresh for every answer that came without it"
    )
    parser.add_argument(
        "--metrics",
        metavar="URL",
        help="metrics of the server, http://HOST:PORT, which tell what was computed for cancelled answers too; "
        "default: those of the server started here",
    )
    measurement.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Replay and report.

    Raises TraceError, ReportError, CountersError, DialectError, RunError, OwnServerError, AddressError.
    """
    from loadtest import replay_report
    from loadtest.replay import Replay, ReplaySettings
    from loadtest.traces import read_trace
    from loadtest.verification import Verification

    measurement.check(arguments)
    settings = ReplaySettings(
        users=arguments.users,
        speed=arguments.speed,
        keystrokes=arguments.keystrokes,
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
        path=arguments.path,
    )
    replay = Replay(read_trace(arguments.trace, seed=arguments.seed), settings)
    verification = Verification() if arguments.verify else None
    command = measurement.command_line(
        arguments,
        NAME,
        arguments.trace,
        options=("server", "dialect", "users", "speed", "keystrokes", "seed", "max-tokens", "path", "metrics"),
        flags=("client-cache", "verify"),
    )
    measurement.conclude(
        arguments,
        lambda: _type(arguments, replay, verification),
        is_begun=lambda: bool(replay.outcomes),
        assemble=lambda: replay_report.assemble(replay, verification, command=command),
        draw=lambda: _draw(arguments, replay),
    )
    _check(replay, verification)


def _type(arguments: argparse.Namespace, replay: "Replay", verification: "Verification | None") -> None:
    import asyncio

    from cloudcomplete.progress import ProgressBar
    from loadtest.counters import ComputedTokens, CounterSource
    from loadtest.dialects import open_dialect

    num_on_time = num_errors = 0

    async def type_all(dialect: "Dialect", computed_tokens: ComputedTokens) -> None:
        def show(outcome: "Outcome") -> None:
            nonlocal num_on_time, num_errors
            num_on_time += outcome.shown_s is not None
            num_errors += outcome.error is not None
            num_done = len(replay.outcomes)
            facts = f"on time {num_on_time / num_done:.3f}" + (f", {num_errors} errors" if num_errors else "")
            bar.show(num_done, facts)

        with ProgressBar(sys.stderr, total=replay.num_planned, unit="keystrokes") as bar:
            await replay.run(dialect, computed_tokens=computed_tokens, on_outcome=show)

    async def ask(address: str, metrics_url: str | None) -> None:
        computed_tokens = ComputedTokens(None if metrics_url is None else CounterSource(metrics_url))
        async with open_dialect(arguments.dialect, address, has_client_cache=arguments.client_cache) as dialect:
            await type_all(dialect, computed_tokens)
            if verification is not None and not replay.given_up:
                with ProgressBar(sys.stderr, total=replay.num_stored, unit="answers verified") as bar:
                    await replay.verify(dialect, verification, on_checked=bar.show)

    with measurement.opened_server(arguments) as server:
        asyncio.run(ask(server.address, arguments.metrics or server.metrics_url))


def _draw(arguments: argparse.Namespace, replay: "Replay") -> dict[str, bytes]:
    from loadtest import replay_report
    from loadtest.outcomes import count_endings
    from server import plots

    return {
        "latency": plots.cumulative_curve(
            "Time to first text",
            replay_report.latencies_ms(replay.outcomes),
            x_label="from the keystroke to the first text, ms (logarithmic)",
        ),
        "sources": plots.stacked_bars(
            "Answers by source", {arguments.dialect: count_endings(replay.outcomes)}, x_label="share of keystrokes"
        ),
    }


def _check(replay: "Replay", verification: "Verification | None") -> None:
    """Raise RunError when the run cannot stand for the server, though its figures have been reported."""
    from loadtest.errors import RunError

    num_typed = len(replay.outcomes)
    if replay.given_up:
        raise RunError(f"given up after {num_typed:,} of {replay.num_planned:,} keystrokes: {replay.given_up}")
    if not any(outcome.text or outcome.is_empty for outcome in replay.outcomes):
        errors = (outcome.error for outcome in replay.outcomes if outcome.error is not None)
        why = (
            f"the first error: {error}" if (error := next(errors, None)) else "all were cancelled before any text came"
        )
        raise RunError(f"none of {num_typed:,} keystrokes was answered; {why}")
    if verification is not None and verification.unchecked:
        raise RunError(f"{len(verification.unchecked):,} answers could not be verified; {verification.unchecked[0]}")
