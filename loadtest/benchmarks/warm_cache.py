"""`bench warm-cache`: what the flow `warm-cache` buys in the first 500 keystrokes that a server gets.

Typists type the same places of an editing history on a fresh server, three times: cold; warmed with what was asked at
the 250 keystrokes before those places, none of which is typed again (yesterday's log, today's work); and warmed with
what is asked at these very places (the log of the same work, as after a restart, or of somebody with the same files):
no log can give more than that. The flow runs as its command runs it, without Prefect. Pauses are cut to a second, which
changes no request.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtest.benchmarks.served import serving, typing_trace
from loadtest.benchmarks.typing_load import MAX_TOKENS, load_trace
from loadtest.dialects import open_dialect
from loadtest.errors import RunError
from loadtest.outcomes import summarise
from loadtest.replay import Replay, ReplaySettings
from loadtest.report import Number
from loadtest.stretches import Stretch
from loadtest.traces import Moment, Trace
from server.request_log import RequestLog
from server.types import CompletionRequest, SamplingOptions

USERS, KEYSTROKES = 4, 125
_PAUSE_S = 1.0
_PATH = "C.svelte"
_FLOW_S = 600.0
_FIGURES = ("answered_without_model_share", "first_text_p50_ms", "first_text_p95_ms", "on_time_share")


class Brisk:
    """A trace whose pauses are cut to a second."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.keystroke_times_s = trace.keystroke_times_s
        """Of the trace as it is: they choose the places."""

    def moments(self, *, first: int, count: int) -> Iterator[Moment]:
        """Yield what the trace does, sooner."""
        at_s = last_s = 0.0
        for moment in self._trace.moments(first=first, count=count):
            at_s, last_s = at_s + min(moment.at_s - last_s, _PAUSE_S), moment.at_s
            yield Moment(at_s, moment.keystroke)


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Type on a cold server, and on servers that each of the two logs has warmed."""
    trace = Brisk(load_trace(typing_trace()))
    stretches = replay_of(trace).stretches
    logs: dict[str, list[CompletionRequest]] = {
        "cold": [],
        "earlier": requests_before(trace, stretches),
        "same": requests_at(trace, stretches),
    }
    rows = []
    for name, requests in logs.items():
        with tempfile.TemporaryDirectory() as directory, serving() as served:
            warmed = warm(requests, served.address, Path(directory)) if requests else {}
            replay = replay_of(trace)
            asyncio.run(_type(replay, served.address))
        row = {"log": name, **warmed, **figures_of(replay)}
        rows.append(row)
        on_progress(
            f"{name}: {row['answered_without_model_share']:.3f} without the model, first text "
            f"{_ms(row['first_text_p50_ms'])} (p95 {_ms(row['first_text_p95_ms'])})"
        )
    headline = {f"{row['log']}_{figure}": row[figure] for row in rows for figure in _FIGURES}
    cold = rows[0]["answered_without_model_share"]
    headline |= {f"{row['log']}_raised_by_share": row["answered_without_model_share"] - cold for row in rows[1:]}
    return headline | {"keystrokes": rows[0]["keystrokes"]}, rows


def replay_of(trace: Trace, *, users: int = USERS, keystrokes: int = KEYSTROKES) -> Replay:
    """Return what is typed, always the same."""
    return Replay(trace, ReplaySettings(users=users, keystrokes=keystrokes, max_tokens=MAX_TOKENS, path=_PATH))


def requests_at(trace: Trace, stretches: Sequence[Stretch]) -> list[CompletionRequest]:
    """Return what is asked at each keystroke of some stretches."""
    return [
        CompletionRequest(
            before=moment.keystroke.before,
            after=moment.keystroke.after,
            path=_PATH,
            sampling=SamplingOptions(temperature=0.0, max_tokens=MAX_TOKENS),
        )
        for stretch in stretches
        for moment in trace.moments(first=stretch.first, count=stretch.count)
        if moment.keystroke is not None
    ]


def requests_before(trace: Trace, stretches: Sequence[Stretch]) -> list[CompletionRequest]:
    """Return what was asked at half as many keystrokes before each stretch, less what is asked in any of them."""
    earlier = [Stretch(max(0, one.first - one.count // 2), min(one.first, one.count // 2)) for one in stretches]
    measured = {(request.before, request.after) for request in requests_at(trace, stretches)}
    asked = requests_at(trace, [one for one in earlier if one.count])
    return [request for request in asked if (request.before, request.after) not in measured]


def write_log(requests: Sequence[CompletionRequest], path: Path) -> None:
    """Write a log of requests as a server writes it."""
    log = RequestLog(path, max_bytes=1 << 30)
    for request in requests:
        log.append("", request)
    log.close()


def warm(requests: Sequence[CompletionRequest], address: str, directory: Path) -> dict[str, Any]:
    """Run the flow on a log of these requests, and return what it says; raises RunError."""
    log, out = directory / "requests", directory / "out.json"
    write_log(requests, log)
    began_s = time.monotonic()
    command = [
        sys.executable, "-P", "-m", "cloudcomplete", "flows", "run", "warm-cache", f"log={log}",
        f"server={address}", f"most={len(requests)}", "--plain", "--json", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "PREFECT_HOME": str(directory / "prefect")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_FLOW_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"the flow warm-cache took more than {_FLOW_S:g} s for {len(requests):,} requests") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise RunError(f"the flow warm-cache failed; its last line: {said[0]}")
    result: dict[str, Any] = msgspec.json.decode(out.read_bytes())
    return {f"warm_{key}": value for key, value in result.items()} | {"warm_s": round(time.monotonic() - began_s, 1)}


def figures_of(replay: Replay) -> dict[str, Number]:
    """Return a replay's headline; raises RunError where the server went away."""
    if replay.given_up:
        raise RunError(f"the replay was given up: {replay.given_up}")
    return summarise(replay.outcomes, users=replay.settings.users)


async def _type(replay: Replay, address: str) -> None:
    async with open_dialect("grpc", address) as dialect:
        await replay.run(dialect)


def _ms(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} ms"
