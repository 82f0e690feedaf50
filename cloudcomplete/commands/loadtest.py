"""`cloudcomplete loadtest`: many users against a server, by Locust."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cloudcomplete import measurement

if TYPE_CHECKING:
    from loadtest.load_result import LoadResult

NAME = "loadtest"
SUMMARY = "load a server with many users, by Locust"
DESCRIPTION = (
    "Run a scenario of the load test: without SCENARIO they are listed. People who type need --trace, an editing "
    "history; bursts and days need --arrivals, a trace of requests or of rates. Without --server a server with the "
    "starter model is started and stopped again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    count = measurement.to_count
    parser.add_argument("scenario", metavar="SCENARIO", nargs="?", default="", help="what the users do")
    parser.add_argument("--server", metavar="ADDR", help="server to ask: HOST:PORT")
    parser.add_argument("--users", metavar="N", type=count, default=8, help="users at once; default: 8")
    parser.add_argument("--seconds", metavar="S", type=measurement.to_speed, default=300.0, help="default: 300")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=0, help="processes that make the load; default: one"
    )
    parser.add_argument(
        "--web-port", metavar="N", type=int, default=0, help="show Locust's page on this port meanwhile"
    )
    parser.add_argument("--trace", metavar="F", type=Path, help="editing history that is typed, as for `replay`")
    parser.add_argument("--path", metavar="PATH", default="", help="path of its file as the server is told")
    parser.add_argument(
        "--arrivals", metavar="F", type=Path, help="trace of requests, or of rates: CSV, plain or gzipped"
    )
    parser.add_argument("--begin", metavar="S", type=float, default=0.0, help="seconds into the trace of requests")
    parser.add_argument(
        "--rate", metavar="X", type=measurement.to_speed, default=1.0, help="times its pace; default: 1"
    )
    parser.add_argument("--seed", metavar="N", type=measurement.to_seed, default=0, help="chooses places")
    parser.add_argument(
        "--max-tokens", metavar="N", type=count, default=48, help="most tokens of an answer; default: 48"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """List the scenarios, or run one and report; raises RunError, ReportError, OwnServerError."""
    from loadtest import report
    from loadtest.errors import RunError
    from loadtest.scenarios import SCENARIOS, find_scenario

    if not arguments.scenario:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:<10}{scenario.loop} loop: {scenario.summary}")
        return
    scenario = find_scenario(arguments.scenario)
    if "TypingUser" in scenario.users and arguments.trace is None:
        arguments.fail(f"{scenario.name} needs --trace, an editing history")
    if ("BurstUser" in scenario.users or scenario.needs_shape) and arguments.arrivals is None:
        arguments.fail(f"{scenario.name} needs --arrivals, a trace of requests or of rates")
    if arguments.json is not None:
        report.check_writable(arguments.json)
    with measurement.opened_server(arguments) as server:
        found = _load(arguments, server.address)
    options = (
        "server",
        "users",
        "seconds",
        "workers",
        "trace",
        "path",
        "arrivals",
        "begin",
        "rate",
        "seed",
        "max-tokens",
    )
    command = measurement.command_line(arguments, NAME, scenario.name, options=options, flags=())
    result = report.assemble(
        found.headline(),
        [entry.to_row() for entry in found.entries],
        command=command,
        notes=[
            f"{scenario.loop} loop: {scenario.summary}",
            *(f"{entry.kind}, {entry.name}: {entry.count:,}" for entry in found.entries if entry.kind == "keystroke"),
            *report.error_notes((("", text) for text, count in found.errors.items() for _ in range(count))),
            *found.problems,
        ],
        is_partial=bool(found.problems),
    )
    print(report.describe(result))
    if arguments.json is not None:
        report.write_json(arguments.json, result)
    if found.problems:
        raise RunError(found.problems[0])


def _load(arguments: argparse.Namespace, address: str) -> "LoadResult":
    from loadtest.load_run import LoadRun, LoadSettings

    settings = LoadSettings(
        scenario=arguments.scenario,
        address=address,
        seconds=arguments.seconds,
        users=arguments.users,
        workers=arguments.workers,
        web_port=arguments.web_port,
        typing_trace=str(arguments.trace or ""),
        typing_path=arguments.path,
        arrivals=str(arguments.arrivals or ""),
        arrivals_begin_s=arguments.begin,
        rate=arguments.rate,
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
    )
    print(f"{arguments.users} users for {arguments.seconds:g} s against {address}", file=sys.stderr)
    with LoadRun(settings) as run:
        return run.wait()
