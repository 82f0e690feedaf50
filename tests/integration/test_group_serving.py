"""A group of processes serves one model, each with its part of it; one that is lost is not the end.

Four processes, which take long on few cores, run with `pytest -m long`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudcomplete.config import load_settings
from engine.loader import load_engine
from engine.weights.partitioning import partition_model
from server.client import Client
from server.errors import UnavailableError
from tests.server.in_process_server import InProcessServer

MODEL = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-llama"
SETTINGS = ("num_slots=1", "prefill_chunk=32", "max_context=256", "prefix_store_mb=1", "drafts=false")
"""Few programs to compile; chunks of 32 tokens are two microbatches."""
MESHES = {2: ("--stages", "2"), 4: ("--stages", "2", "--tensor", "2")}


def settings(compile_cache: Path) -> list[str]:
    return [f"engine.{name}" for name in (*SETTINGS, f"compile_cache={compile_cache}")] + ["cache.is_enabled=false"]


class Group:
    """`cloudcomplete serve --processes N` as its user sees it, and the processes that it says it started."""

    def __init__(self, process: "subprocess.Popen[str]", client: Client) -> None:
        self.supervisor, self.client = process, client

    def processes(self) -> list[int]:
        """Wait until the supervisor starts processes, the leader first."""
        assert self.supervisor.stdout is not None
        line = next(line for line in self.supervisor.stdout if line.startswith("processes "))
        return [int(word) for word in line.split()[1:]]

    def complete(self) -> str:
        """Ask until the group serves."""
        deadline = time.monotonic() + 200
        while True:
            try:
                return complete(self.client)
            except UnavailableError:
                assert time.monotonic() < deadline, "the group does not serve"
                time.sleep(0.2)


@contextmanager
def group(model: Path, num_processes: int, compile_cache: Path, log: Path) -> Iterator[Group]:
    """Start a group, and end it by SIGTERM if it is there still."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cloudcomplete", "serve", str(model), "--grpc-port", str(port)]
    command += ["--processes", str(num_processes), *MESHES[num_processes]]
    command += [word for setting in settings(compile_cache) for word in ("--set", setting)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    with process, Client(f"127.0.0.1:{port}") as client:
        try:
            yield Group(process, client)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), log.read_text()[-3000:]


def complete(client: Client) -> str:
    return client.complete("def add(a, b):\n    return ", max_tokens=12).text


@pytest.fixture(scope="module")
def expected(compile_cache: Path) -> str:
    """What one device writes."""
    engine = load_engine(MODEL, load_settings(overrides=settings(compile_cache)).engine)
    try:
        with InProcessServer(engine, trim="auto") as server, Client(server.address) as client:
            text = complete(client)
    finally:
        engine.close(timeout_s=5)
    assert text
    return text


def wait_until_gone(process: int, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while is_running(process):
        assert time.monotonic() < deadline, f"process {process} goes on"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody here may wait for a process whose parent was killed


def test_a_group_survives_the_loss_of_a_process_and_none_survives_that_of_leader_and_supervisor(
    compile_cache: Path, tmp_path: Path, expected: str
) -> None:
    with group(MODEL, 2, compile_cache, tmp_path / "log") as started:
        _, follower = started.processes()
        assert started.complete() == expected
        with started.client.stream("x = ", max_tokens=200) as stream:
            next(iter(stream))
            os.kill(follower, signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(UnavailableError):
                list(stream)
        assert time.monotonic() - killed < 10
        leader, follower_again = started.processes()
        assert follower_again != follower
        assert started.complete() == expected
        started.supervisor.kill()
        os.kill(leader, signal.SIGKILL)
        wait_until_gone(follower_again, timeout_s=10)


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_group_serves_a_partition_as_one_device_serves_the_model(
    num_processes: int, compile_cache: Path, tmp_path: Path, expected: str
) -> None:
    partition_model(MODEL, 2, tmp_path / "parted")
    with group(tmp_path / "parted", num_processes, compile_cache, tmp_path / "log") as started:
        assert len(started.processes()) == num_processes
        assert started.complete() == expected


def test_a_mesh_that_does_not_use_every_process_is_refused(compile_cache: Path) -> None:
    command = [sys.executable, "-m", "cloudcomplete", "serve", str(MODEL), "--grpc-port", "0", "--processes", "2"]
    command += ["--set", f"engine.compile_cache={compile_cache}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "the mesh of 1 devices uses 1 of 2 processes; expected all of them; raise --stages" in done.stderr
