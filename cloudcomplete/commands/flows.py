"""`cloudcomplete flows`: list the recurring work, run a part of it now, or serve all of it by schedule."""

import argparse
import signal
from pathlib import Path
from typing import Any, NoReturn

NAME = "flows"
SUMMARY = "list, run or serve the recurring work (Prefect)"
DESCRIPTION = (
    "list: the flows. run NAME k=v ...: run one now; embedded, or against the Prefect server that --api or "
    "PREFECT_API_URL names. A run that was stopped, started again, does not do again what was done. serve [NAME k=v "
    "...]: run flows (default: all) by schedule until SIGTERM, with a Prefect server on loopback unless one is named."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "cloudcomplete flows [-h] list | run NAME [k=v ...] | serve [NAME [k=v ...]]"
    parser.add_argument("action", choices=("list", "run", "serve"), help="what to do")
    parser.add_argument("words", metavar="NAME k=v", nargs="*", help="a flow and its parameters")
    parser.add_argument("--api", metavar="URL", default="", help="Prefect server, such as http://127.0.0.1:4200/api")
    parser.add_argument("--plain", action="store_true", help="with run: without Prefect, as a plain function")
    parser.add_argument(
        "--cron", metavar="NAME=CRON", action="append", default=[], help="with serve: schedule of a flow; repeatable"
    )
    parser.add_argument("--port", metavar="N", type=int, default=4200, help="with serve: port of the server it starts")
    parser.add_argument("--json", metavar="OUT", type=Path, help="with run: also write what the flow returned to OUT")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """List, run or serve; raises FlowError, or what the flow raises."""
    from loadtest import report
    from orchestration.flows.registry import FLOWS
    from orchestration.flows.runs import run_flow, serve_flows

    words: list[str] = arguments.words
    if arguments.action == "list":
        if words:
            arguments.fail(f"list takes nothing more, got {' '.join(words)}")
        for name, entry in FLOWS.items():
            print(f"{name:<20}{entry.summary}{f' (cron {entry.cron})' if entry.cron else ''}")
        return
    if arguments.action == "serve":
        crons = _read_crons(arguments)
        signal.signal(signal.SIGTERM, _leave)
        serve_flows(
            {words[0]: words[1:]} if words else dict.fromkeys(FLOWS, ()),
            crons=crons, api_url=arguments.api, port=arguments.port,
        )  # fmt: skip
        return
    if not words:
        arguments.fail(f"run needs a flow; expected one of: {', '.join(FLOWS)}")
    if arguments.json is not None:
        report.check_writable(arguments.json)
    result = run_flow(words[0], words[1:], api_url=arguments.api, is_plain=arguments.plain)
    for key, value in result.items():
        print(f"{key:<24}{value}")
    if arguments.json is not None:
        report.write_json(arguments.json, result)


def _read_crons(arguments: argparse.Namespace) -> dict[str, str]:
    crons = {}
    for word in arguments.cron:
        name, equals, cron = word.partition("=")
        if not equals:
            arguments.fail(f"--cron got {word!r}; expected NAME=CRON, such as 'nightly=0 3 * * *'")
        crons[name] = cron
    return crons


def _leave(signum: int, frame: Any) -> NoReturn:
    """Leave through all `finally`s, so that a server that was started is stopped."""
    del frame
    raise SystemExit(128 + signum)
