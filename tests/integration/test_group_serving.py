"""A group of two processes serves one model, each with its part of it; one that is lost is not the end."""

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

from server.client import Client
from server.errors import UnavailableError

MODEL = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-llama"
SETTINGS = ("num_slots=2", "prefill_chunk=16", "max_context=256", "prefix_store_mb=1", "drafts=false")


@contextmanager
def group(directory: Path, *mesh: str) -> Iterator[tuple[Client, "subprocess.Popen[str]"]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"engine.{name}" for name in (*SETTINGS, f"compile_cache={directory}")] + ["cache.is_enabled=false"]
    command = [sys.executable, "-m", "cloudcomplete", "serve", str(MODEL), "--grpc-port", str(port), *mesh]
    command += [word for setting in settings for word in ("--set", setting)]
    with (directory / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    with process, Client(f"127.0.0.1:{port}") as client:
        try:
            yield client, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 0, (directory / "log").read_text()[-3000:]


def followers(process: "subprocess.Popen[str]") -> list[int]:
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("processes "))
    return [int(word) for word in line.split()[2:]]


def complete(client: Client) -> str:
    """Ask until the group serves."""
    deadline = time.monotonic() + 200
    while True:
        try:
            return client.complete("def add(a, b):\n    return ", max_tokens=12).text
        except UnavailableError:
            assert time.monotonic() < deadline, "the group does not serve"
            time.sleep(0.2)


def test_a_group_survives_the_loss_of_a_process_and_open_requests_hear_of_it(tmp_path: Path) -> None:
    with group(tmp_path, "--processes", "2", "--stages", "2") as (client, process):
        [follower] = followers(process)
        text = complete(client)
        with client.stream("x = ", max_tokens=200) as stream:
            next(iter(stream))
            os.kill(follower, signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(UnavailableError):
                list(stream)
        assert time.monotonic() - killed < 10
        assert followers(process) != [follower]
        assert complete(client) == text


def test_a_mesh_that_does_not_use_every_process_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cloudcomplete", "serve", str(MODEL), "--grpc-port", "0", "--processes", "2"]
    command += ["--set", f"engine.compile_cache={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "the mesh of 1 devices uses 1 of 2 processes; expected all of them; raise --stages" in done.stderr
