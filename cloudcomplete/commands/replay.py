"""`cloudcomplete replay`: what a recorded editing session would have felt like with a server."""

import argparse
import contextlib
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
    parser.add_argument("--server", metavar="ADDR", help="server to ask: HOST:PORT, or a URL for llama-infill")
    parser.add_argument(
        "--dialect", metavar="D", default="grpc", help="how to ask it: grpc or llama-infill, raw; default: grpc"
    )
    parser.add_argument(
        "--client-cache",
        action="store_true",
        help="put the cache that llama.cpp's editor plugins have in front of the server: 250 keys and type-through",
    )
    parser.add_argument(
        "--users", metavar="N", type=_count, default=1, help="type at N places of the trace at once; default: 1"
    )
    parser.add_argument(
        "--speed", metavar="X", type=_speed, default=1.0, help="type X times as fast as recorded; default: 1"
    )
    parser.add_argument(
        "--keystrokes",
        metavar="N",
        type=_count,
        help="type N consecutive keystrokes per user; default: the whole trace",
    )
    parser.add_argument(
        "--seed", metavar="N", type=_seed, default=0, help="chooses the places; the same seed, the same requests"
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=_count, help="most tokens of an answer; default: the server's"
    )
    parser.add_argument("--path", metavar="PATH", default="", help="path of the file as the server is told")
    parser.add_argument(
        "--verify", action="store_true", help="afterwards ask the model afresh for every answer that came without it"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="also draw latencies and sources as SVG into DIR")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """Replay and report; raises TraceError, ReportError, DialectError, RunError, OwnServerError, AddressError."""
    from loadtest import replay_report, report
    from loadtest.dialects import DIALECTS
    from loadtest.replay import Replay, ReplaySettings
    from loadtest.traces import read_trace
    from loadtest.verification import Verification

    if arguments.dialect not in DIALECTS:
        arguments.fail(f"{arguments.dialect!r} is no dialect; expected one of: {', '.join(DIALECTS)}")
    if arguments.server is None and arguments.dialect != "grpc":
        arguments.fail(f"--dialect {arguments.dialect} needs --server: only a grpc server can be started here")
    if arguments.json is not None:
        report.check_writable(arguments.json)
    if arguments.plots is not None:
        report.make_directory(arguments.plots)
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
    is_interrupted = False
    try:
        _type(arguments, replay, verification)
    except KeyboardInterrupt:
        if not replay.outcomes:
            raise
        is_interrupted = True
    result = replay_report.assemble(replay, verification, command=_command(arguments))
    print(report.describe(result))
    if arguments.json is not None:
        report.write_json(arguments.json, result)
    if arguments.plots is not None:
        _write_plots(arguments, replay)
    if is_interrupted:
        raise KeyboardInterrupt
    _check(replay, verification)


def _type(arguments: argparse.Namespace, replay: "Replay", verification: "Verification | None") -> None:
    import asyncio

    from cloudcomplete.own_server import OwnServer
    from cloudcomplete.progress import Progress, ProgressBar
    from loadtest.dialects import open_dialect

    with contextlib.ExitStack() as stack:
        address = arguments.server
        if address is None:
            progress = Progress(sys.stderr, has_plain_lines=False)
            stack.callback(progress.end)
            address = stack.enter_context(OwnServer(on_progress=progress.show)).address
            progress.end()
        bar = ProgressBar(sys.stderr, total=replay.num_planned, unit="keystrokes")
        stack.callback(bar.end)
        num_on_time = num_errors = 0

        def show(outcome: "Outcome") -> None:
            nonlocal num_on_time, num_errors
            num_on_time += outcome.shown_s is not None
            num_errors += outcome.error is not None
            num_done = len(replay.outcomes)
            facts = f"on time {num_on_time / num_done:.3f}" + (f", {num_errors} errors" if num_errors else "")
            bar.show(num_done, facts)

        async def verify(dialect: "Dialect", verification: "Verification") -> None:
            checks = ProgressBar(sys.stderr, total=replay.num_stored, unit="answers verified")
            stack.callback(checks.end)
            await replay.verify(dialect, verification, on_checked=checks.show)

        async def ask() -> None:
            async with open_dialect(arguments.dialect, address, has_client_cache=arguments.client_cache) as dialect:
                await replay.run(dialect, on_outcome=show)
                bar.end()
                if verification is not None and not replay.given_up:
                    await verify(dialect, verification)

        asyncio.run(ask())


def _write_plots(arguments: argparse.Namespace, replay: "Replay") -> None:
    from loadtest import plots, replay_report
    from loadtest.outcomes import count_endings

    latency = plots.cumulative_curve(
        "Time to first text",
        replay_report.latencies_ms(replay.outcomes),
        x_label="from the keystroke to the first text, ms (logarithmic)",
    )
    sources = plots.stacked_bars(
        "Answers by source", {arguments.dialect: count_endings(replay.outcomes)}, x_label="share of keystrokes"
    )
    plots.write_plots(arguments.plots, {"latency": latency, "sources": sources})


def _check(replay: "Replay", verification: "Verification | None") -> None:
    """Raise RunError when the run cannot stand for the server, though its figures have been reported."""
    from loadtest.errors import RunError

    num_typed = len(replay.outcomes)
    if replay.given_up:
        raise RunError(f"given up after {num_typed:,} of {replay.num_planned:,} keystrokes: {replay.given_up}")
    if all(outcome.error is not None for outcome in replay.outcomes):
        raise RunError(f"none of {num_typed:,} keystrokes was answered; the first error: {replay.outcomes[0].error}")
    if verification is not None and verification.unchecked:
        raise RunError(f"{len(verification.unchecked):,} answers could not be verified; {verification.unchecked[0]}")


def _command(arguments: argparse.Namespace) -> str:
    """Return what decides the figures of this command line; where they are written to does not."""
    words = ["cloudcomplete", NAME, str(arguments.trace)]
    for name in ("server", "dialect", "users", "speed", "keystrokes", "seed", "max_tokens", "path"):
        value = getattr(arguments, name)
        if value not in (None, ""):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += [f"--{name}" for name in ("client-cache", "verify") if getattr(arguments, name.replace("-", "_"))]
    return shlex.join(words)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return speed
