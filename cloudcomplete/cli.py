"""The command line. Reads arguments, dispatches to `commands/`, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed with a line on standard error, 2 wrong usage, 130 interrupted. Nothing heavy is imported
before a command runs, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cloudcomplete.commands import (
    allocator,
    bench,
    cache,
    complete,
    evaluate,
    flows,
    index,
    info,
    loadtest,
    partition,
    replay,
    serve,
)

COMMANDS = (serve, complete, evaluate, replay, loadtest, info, partition, flows, allocator, cache, index, bench)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = _Parser(prog="cloudcomplete", description="A self-hosted code-completion service.", allow_abbrev=False)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.NAME, help=command.SUMMARY, description=command.DESCRIPTION, allow_abbrev=False
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    parsed = build_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not _is_expected(error):
            raise
        print(f"cloudcomplete: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _is_expected(error: Exception) -> bool:
    """Tell an error with a message for the user from a defect, whose traceback is wanted."""
    from cache.errors import CacheError
    from cloudcomplete.errors import CommandError
    from engine.errors import EngineError
    from loadtest.errors import LoadtestError
    from orchestration.allocator.errors import AllocatorError
    from orchestration.flows.errors import FlowError
    from server.errors import ServerError

    expected = (AllocatorError, CacheError, CommandError, EngineError, FlowError, LoadtestError, ServerError)
    return isinstance(error, expected)
