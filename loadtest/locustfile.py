"""What Locust runs: `locust -f loadtest/locustfile.py --host 127.0.0.1:50051 --scenario typing -u 8`.

With its web page, `--headless`, or distributed with `--master` and `--worker`; `cloudcomplete loadtest` does all that.
Locust decides how many users there are and adds up their figures; the users themselves live in a process beside each of
Locust's (`load_driver.py`), since what gevent does to gRPC would be measured as the server's.

The run ends with exit code 1, and says why, when the server is not there at the start, or when a worker was lost on the
way; `--result FILE` then says so, too.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import msgspec
from locust import LoadTestShape, User, events, task
from locust.exception import StopUser

from loadtest import load_result
from loadtest.arrivals import read_arrivals
from loadtest.errors import LoadtestError
from loadtest.scenarios import SCENARIOS, Scenario, find_scenario
from loadtest.shapes import LoadShape
from loadtest.traces import read_trace
from loadtest.users import UserSettings

_NUM_STEPS = 60
_WATCH_S = 0.5
_LAST_WORDS_S = 10.0


class Failure(Exception):  # noqa: N818 - Locust shows its name beside what failed
    """Why something that was asked for did not come."""


class Driver:
    """The process with this Locust process's users. It starts at once; what it is to do comes with the first user."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._has_settings = False
        self._ended: dict[tuple[str, int], gevent.event.Event] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "loadtest.load_driver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        gevent.spawn(self._read)

    def start(self, kind: str, number: int) -> gevent.event.Event:
        """Start a user; returns the event of its end."""
        if not self._has_settings:
            self._has_settings = True
            self._tell(msgspec.json.encode(self._settings()).decode())
        ended = self._ended[kind, number] = gevent.event.Event()
        self._tell(f"start {kind} {number}")
        return ended

    def stop(self, kind: str, number: int) -> None:
        """Stop a user, and wait for its last figures."""
        self._tell(f"stop {kind} {number}")
        self._ended[kind, number].wait(_LAST_WORDS_S)

    def _settings(self) -> UserSettings:
        options = self._environment.parsed_options
        return UserSettings(
            address=self._environment.host or "",
            duration_s=options.duration,
            typing_trace=options.typing_trace,
            typing_path=options.typing_path,
            arrivals=options.arrivals,
            arrivals_begin_s=options.arrivals_begin,
            rate=options.rate,
            lanes=options.lanes,
            seed=options.seed,
            max_tokens=options.max_tokens,
            timeout_s=options.timeout,
        )

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None, "started with a pipe"
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None, "started with a pipe"
        for line in self._process.stdout:
            word, kind, name, *rest = msgspec.json.decode(line)
            if word == "ended":
                self._ended[kind, name].set()
                continue
            seconds, num_chars, error = rest
            self._environment.events.request.fire(
                request_type=kind,
                name=name,
                response_time=seconds * 1e3,
                response_length=num_chars,
                exception=Failure(error) if error else None,
                context={},
            )
        print("loadtest: the process with the users ended by itself", flush=True)  # noqa: T201
        os._exit(1)  # a worker's end is noticed by its master; alone, nothing is left to report


class _Driven(User):  # type: ignore[misc,unused-ignore]
    """A user as Locust sees it: it comes and goes."""

    abstract = True
    _num_here = 0

    def on_start(self) -> None:
        """Take the next number; users are dealt to workers in turn."""
        runner, options = self.environment.runner, self.environment.parsed_options
        num_workers = options.expect_workers if hasattr(runner, "worker_index") else 1
        kind = type(self)
        self._number = max(0, getattr(runner, "worker_index", 0)) + num_workers * kind._num_here
        kind._num_here += 1
        self._ended = runner.driver.start(kind.__name__, self._number)

    @task
    def live(self) -> None:
        """Be there until stopped, or until nothing is left to do."""
        self._ended.wait()
        raise StopUser

    def on_stop(self) -> None:
        """Leave."""
        self.environment.runner.driver.stop(type(self).__name__, self._number)


class TypingUser(_Driven):
    """See `users.TypingUser`."""


class BurstUser(_Driven):
    """See `users.BurstUser`. There are as many as shares of the trace: one is enough, since it does not wait."""


class PatientUser(_Driven):
    """See `users.PatientUser`."""


def declare_options(parser: Any) -> None:
    """Declare what a scenario needs to know."""
    names = ", ".join(f"{scenario.name} ({scenario.loop} loop)" for scenario in SCENARIOS.values())
    parser.add_argument("--scenario", default="typing", help=f"one of: {names}")
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of a trace of requests, or of a shape")
    parser.add_argument("--typing-trace", default="", help="editing history that is typed")
    parser.add_argument("--typing-path", default="", help="path of its file as the server is told")
    parser.add_argument("--arrivals", default="", help="trace of requests, or of rates for the shape")
    parser.add_argument("--arrivals-begin", type=float, default=0.0, help="seconds into the trace of requests")
    parser.add_argument("--rate", type=float, default=1.0, help="pace of the trace of requests")
    parser.add_argument("--lanes", type=int, default=1, help="among how many users that trace is divided")
    parser.add_argument("--peak", type=int, default=8, help="greatest number of users of a shape")
    parser.add_argument("--seed", type=int, default=0, help="chooses places")
    parser.add_argument("--max-tokens", type=int, default=48, help="most tokens of an answer")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that an answer may take")
    parser.add_argument("--result", default="", help="file for the figures, as JSON")


def set_up(environment: Any, runner: Any, **_: Any) -> None:
    """Choose the scenario's users and shape; refuse what cannot work before anything is asked."""
    options = environment.parsed_options
    if not options.master:
        runner.driver = Driver(environment)
    if options.worker:
        return
    try:
        scenario = find_scenario(options.scenario)
        environment.user_classes = [globals()[name] for name in scenario.users]
        BurstUser.fixed_count = options.lanes
        _check(scenario, options)
        if scenario.needs_shape:
            environment.shape_class = _make_shape(options, runner)
    except LoadtestError as error:
        print(f"loadtest: {error}", flush=True)  # noqa: T201 - where people look
        sys.exit(1)
    watch = _Workers(runner, options.expect_workers if options.master else 0)
    gevent.spawn(watch.look)

    def conclude(environment: Any, **_: Any) -> None:
        problems = watch.problems()
        if options.result:
            load_result.write(Path(options.result), environment.stats, problems=problems)
        for problem in problems:
            print(f"loadtest: {problem}", flush=True)  # noqa: T201
        environment.process_exit_code = 1 if problems else 0  # failed requests are figures

    environment.events.quitting.add_listener(conclude)


class _Workers:
    """Notices workers that are lost while the test runs."""

    def __init__(self, runner: Any, num_expected: int) -> None:
        self._runner, self._num_expected = runner, num_expected
        self._lost: set[str] = set()
        self._most = 0

    def look(self) -> None:
        """Look for them until the process ends."""
        while self._num_expected:
            gevent.sleep(_WATCH_S)
            clients = self._runner.clients
            self._most = max(self._most, len(clients.ready) + len(clients.spawning) + len(clients.running))
            self._lost |= {client.id for client in clients.missing}

    def problems(self) -> list[str]:
        """Return a sentence for whatever makes the figures less than they seem."""
        problems = []
        if self._most < self._num_expected:
            problems.append(f"{self._most} of {self._num_expected} workers came; the load was smaller than asked for")
        if self._lost:
            problems.append(
                f"{len(self._lost)} of {self._num_expected} workers died in the middle of the test; what they had "
                "measured last is lost, and their users were started anew elsewhere: run it again"
            )
        return problems


def _check(scenario: Scenario, options: Any) -> None:
    """Raise LoadtestError for traces that are none, and for a server that is not there."""
    if "TypingUser" in scenario.users:
        read_trace(Path(options.typing_trace), seed=options.seed)
    if "BurstUser" in scenario.users:
        read_arrivals(Path(options.arrivals))
    if options.headless or options.master or options.autostart:
        probe = [sys.executable, "-P", "-m", "loadtest.server_probe", options.host or ""]  # gRPC stays out of gevent
        if subprocess.run(probe, check=False).returncode:
            raise LoadtestError(
                f"no server answers at {options.host or 'no address'} within 5 s; expected one that is serving: "
                "start it with `cloudcomplete serve`, and name it with --host HOST:PORT"
            )


def _make_shape(options: Any, runner: Any) -> LoadTestShape:
    shape = LoadShape.read(Path(options.arrivals), num_steps=_NUM_STEPS)

    class Traced(LoadTestShape):  # type: ignore[misc,unused-ignore]
        def tick(self) -> tuple[int, float] | None:
            num_users = shape.users_at(self.get_run_time(), duration_s=options.duration, peak=options.peak)
            return None if num_users is None else (num_users, float(options.peak))

    traced = Traced()
    traced.runner = runner
    return traced


events.init_command_line_parser.add_listener(declare_options)
events.init.add_listener(set_up)
