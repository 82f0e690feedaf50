"""What the commands that measure a server have in common: which server and how it is asked, and what becomes of it.

`add_arguments` declares `--server`, `--dialect`, `--client-cache`, `--json` and `--plots`; `check` refuses what cannot
work before anything is asked; `opened_server` is the server, this command's own where none is named; `conclude` runs
the measurement and shows and writes its result, also of one that was interrupted.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from loadtest.report import Result


class ServerUnderTest(NamedTuple):
    """Where to ask."""

    address: str
    metrics_url: str | None = None
    """Where its counters are; None: unknown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that all measuring commands have."""
    parser.add_argument("--server", metavar="ADDR", help="server to ask: HOST:PORT, or a URL for llama-infill")
    parser.add_argument(
        "--dialect", metavar="D", default="grpc", help="how to ask it: grpc or llama-infill, raw; default: grpc"
    )
    parser.add_argument(
        "--client-cache",
        action="store_true",
        help="put the cache that llama.cpp's editor plugins have in front of the server: 250 keys and type-through",
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="also draw latencies and sources as SVG into DIR")
    parser.set_defaults(fail=parser.error)


def check(arguments: argparse.Namespace) -> None:
    """Leave with code 2 for arguments that do not fit together; raises ReportError for an unwritable place."""
    from loadtest import report
    from loadtest.dialects import DIALECTS

    if arguments.dialect not in DIALECTS:
        arguments.fail(f"{arguments.dialect!r} is no dialect; expected one of: {', '.join(DIALECTS)}")
    if arguments.server is None and arguments.dialect != "grpc":
        arguments.fail(f"--dialect {arguments.dialect} needs --server: only a grpc server can be started here")
    if arguments.json is not None:
        report.check_writable(arguments.json)
    if arguments.plots is not None:
        report.make_directory(arguments.plots)


@contextmanager
def opened_server(arguments: argparse.Namespace) -> Iterator[ServerUnderTest]:
    """Give the server that was named, or one that runs for the length of the block; raises OwnServerError."""
    from cloudcomplete.own_server import OwnServer
    from cloudcomplete.progress import Progress

    if arguments.server is not None:
        yield ServerUnderTest(arguments.server)
        return
    progress = Progress(sys.stderr, has_plain_lines=False)
    try:
        with OwnServer(on_progress=progress.show) as server:
            progress.end()
            yield ServerUnderTest(server.address, server.metrics_url)
    finally:
        progress.end()


def conclude(
    arguments: argparse.Namespace,
    measure: Callable[[], None],
    *,
    is_begun: Callable[[], bool],
    assemble: Callable[[], "Result"],
    draw: Callable[[], dict[str, bytes]],
) -> None:
    """Measure, then print the result and write what was asked for; `draw` makes the plots by name.

    An interrupt after the measurement `is_begun` shows what was done until then, and goes on.
    """
    from loadtest import report

    is_interrupted = False
    try:
        measure()
    except KeyboardInterrupt:
        if not is_begun():
            raise
        is_interrupted = True
    result = assemble()
    print(report.describe(result))
    if arguments.json is not None:
        report.write_json(arguments.json, result)
    if arguments.plots is not None:
        report.write_plots(arguments.plots, draw())
    if is_interrupted:
        raise KeyboardInterrupt


def command_line(arguments: argparse.Namespace, *words: object, options: Sequence[str], flags: Sequence[str]) -> str:
    """Return what decides the figures of a command line; where they are written to does not."""
    parts = ["cloudcomplete", *map(str, words)]
    for option in options:
        value: Any = getattr(arguments, option.replace("-", "_"))
        if value not in (None, ""):
            parts += [f"--{option}", str(value)]
    parts += [f"--{flag}" for flag in flags if getattr(arguments, flag.replace("-", "_"))]
    return shlex.join(parts)


def to_count(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def to_seed(text: str) -> int:
    """Read a whole number from 0 on."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def to_speed(text: str) -> float:
    """Read a number above 0."""
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return speed
