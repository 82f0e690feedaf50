"""A server for the length of a benchmark, with settings of its own: the product's, or a peer's on the same weights.

Each is a process on a free port of loopback, stopped by its id; the product's also stops with its standard input.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from loadtest.benchmarks import peers
from loadtest.benchmarks.peers import Peers, is_healthy
from loadtest.errors import RunError
from loadtest.load_run import free_port
from server.client import Client
from server.errors import UnavailableError

_START_S = 300.0
_STOP_S = 20.0
_TRACE = "CLOUDCOMPLETE_TRACE"


class Served(NamedTuple):
    """A server that is serving."""

    address: str
    pid: int


@contextmanager
def serving(settings: Sequence[str] = ()) -> Iterator[Served]:
    """Serve the starter model with `section.key=value` settings; what it learns ends with it. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        port = free_port()
        options = ["--grpc-port", str(port), "--stop-at-eof", "--set", f"cache.directory={directory}"]
        for setting in settings:
            options += ["--set", setting]
        log = Path(directory) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cloudcomplete", "serve", *options],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            address = f"127.0.0.1:{port}"
            _wait(process, address, log)
            yield Served(address, process.pid)
        finally:
            _stop(process)


def serving_llama_cpp(model: Path, *, num_slots: int) -> AbstractContextManager[Served]:
    """Serve a GGUF file by llama.cpp's server, as docs/peers.md says; raises RunError."""
    port, threads = free_port(), _threads()
    return _serving_peer(port, [
        str(Peers.from_environment().server), "-m", str(model), "--host", "127.0.0.1", "--port", str(port),
        "-c", str(2048 * num_slots), "-np", str(num_slots), "-b", "1920", "-t", threads, "-tb", threads,
    ])  # fmt: skip


def serving_transformers(directory: Path) -> AbstractContextManager[Served]:
    """Serve a model directory by transformers, `loadtest/peers/transformers_infill.py`; raises RunError."""
    port = free_port()
    script = Path(peers.__file__).parents[1] / "peers/transformers_infill.py"
    python = str(Peers.from_environment().python)
    return _serving_peer(port, [python, str(script), str(directory), str(port), _threads()])


@contextmanager
def _serving_peer(port: int, command: Sequence[str]) -> Iterator[Served]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline_s = time.monotonic() + _START_S
        while not is_healthy(address):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RunError(f"{' '.join(command)} does not serve; run it by hand to see why")
            time.sleep(0.1)
        yield Served(address, process.pid)
    finally:
        _stop(process)


def _threads() -> str:
    return str(len(os.sched_getaffinity(0)))


def typing_trace() -> Path:
    """Return the editing history that benchmarks type; raises RunError."""
    named = os.environ.get(_TRACE)
    beside = Path(__file__).parents[3] / "shared/data/editing-traces/sveltecomponent.json.gz"
    if (path := Path(named) if named else beside).exists():
        return path
    raise RunError(f"there is no editing history at {path}; expected one: name it in {_TRACE}")


def _wait(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    with Client(address) as client:
        while True:
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
                raise RunError(f"the benchmark's server does not serve; its last line: {said[0]}")
            try:
                return client.wait_until_serving(timeout_s=0.5)
            except UnavailableError:
                continue


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
