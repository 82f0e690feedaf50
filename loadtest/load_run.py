"""Runs Locust in processes of its own and gathers what it found.

Locust changes the process that imports it, and its workers are processes anyway, so whoever wants a load test asks here
and stays as it is. A worker that dies makes the run partial; a master that fails raises.
"""

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loadtest import load_result
from loadtest.errors import RunError
from loadtest.load_result import LoadResult
from loadtest.scenarios import find_scenario

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_GRACE_S = 60.0
"""Seconds beyond the test's length that Locust gets for starting and ending."""


class LoadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One load test."""

    scenario: str
    address: str
    seconds: float
    users: int
    """People who type or ask, at once; a trace of requests needs none, it comes by itself."""
    workers: int = 0
    """Processes that make the load; 0: the one process does."""
    web_port: int = 0
    """Port of Locust's page on loopback, which starts the test by itself; 0: no page."""
    typing_trace: str = ""
    typing_path: str = ""
    arrivals: str = ""
    arrivals_begin_s: float = 0.0
    rate: float = 1.0
    seed: int = 0
    max_tokens: int = 48


class LoadRun:
    """`with LoadRun(settings) as run: result = run.wait()`; leaving early stops the processes, by their ids."""

    def __init__(self, settings: LoadSettings, *, on_line: Callable[[str], None] = lambda line: None) -> None:
        """`on_line` gets what Locust prints; raises RunError for a scenario that does not exist."""
        self._settings, self._on_line = settings, on_line
        find_scenario(settings.scenario)
        self._processes: list[subprocess.Popen[str]] = []
        self._directory = tempfile.TemporaryDirectory(prefix="loadtest-")
        self._result = Path(self._directory.name) / "result.json"

    def __enter__(self) -> "LoadRun":
        settings = self._settings
        options = [*self._common(), "--result", str(self._result)]
        options += (
            ["--web-host", "127.0.0.1", "--web-port", str(settings.web_port), "--autostart", "--autoquit", "1"]
            if (settings.web_port)
            else ["--headless", "--only-summary"]
        )
        port = free_port()
        if settings.workers:
            options += ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
            options += ["--expect-workers", str(settings.workers), "--expect-workers-max-wait", "60"]
        self._start(options)
        for _ in range(settings.workers):
            self._start(["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)])
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._directory.cleanup()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes[1:]]

    def wait(self) -> LoadResult:
        """Return the figures when the test is over; raises RunError when there are none."""
        master = self._processes[0]
        said = []
        assert master.stdout is not None, "started with a pipe"
        for line in master.stdout:
            said.append(line.rstrip())
            self._on_line(said[-1])
        code = master.wait(_GRACE_S)
        told = [line.removeprefix("loadtest: ") for line in said if line.startswith("loadtest: ")]
        if not self._result.exists():
            last = next((line for line in reversed(said) if line), "it printed nothing")
            raise RunError(told[-1] if told else f"locust ended with {code} and left no figures; its last line: {last}")
        result = load_result.read(self._result)
        num_dead = sum(process.poll() not in (None, 0) for process in self._processes[1:])
        if num_dead and not result.problems:
            problem = f"{num_dead} workers ended with an error, so the figures are not of the whole test; run it again"
            result = msgspec.structs.replace(result, problems=[problem])
        return result

    def _common(self) -> list[str]:
        settings = self._settings
        users = find_scenario(settings.scenario).users
        lanes = max(1, settings.workers) if users == ("BurstUser",) else 1
        num_users = lanes if users == ("BurstUser",) else settings.users + lanes * ("BurstUser" in users)
        return [
            "--host", settings.address, "--scenario", settings.scenario, "--users", str(num_users),
            "--spawn-rate", str(num_users), "--run-time", f"{settings.seconds:g}s", "--stop-timeout", "10",
            "--duration", f"{settings.seconds:g}", "--typing-trace", settings.typing_trace,
            "--typing-path", settings.typing_path, "--arrivals", settings.arrivals,
            "--arrivals-begin", f"{settings.arrivals_begin_s:g}", "--rate", f"{settings.rate:g}",
            "--lanes", str(lanes), "--peak", str(settings.users), "--seed", str(settings.seed),
            "--max-tokens", str(settings.max_tokens),
        ]  # fmt: skip

    def _start(self, options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--loglevel", "WARNING", "--skip-log-setup"]
        is_master = not self._processes
        self._processes.append(
            subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_master else subprocess.DEVNULL,
                stderr=subprocess.STDOUT if is_master else subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        )


def free_port() -> int:
    """Return a port of loopback on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
