"""A server that a command starts for itself: a process on a free loopback port, stopped by its process id.

The child also stops when its standard input closes, so it does not outlive a parent that was killed.
"""

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from cloudcomplete.errors import OwnServerError
from server.client import Client
from server.errors import UnavailableError

HOST = "127.0.0.1"
START_TIMEOUT_S = 600.0
"""Seconds for loading and compiling; the first start on a machine compiles everything."""
STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02
_TAIL_LINES = 30


def serve_command(arguments: Sequence[str] = ()) -> list[str]:
    """Return the command line of `cloudcomplete serve` with this interpreter.

    `-P` keeps the working directory off the module path: the user's project may have a `server.py` of its own.
    """
    return [sys.executable, "-P", "-m", "cloudcomplete", "serve", *arguments]


class OwnServer:
    """`with OwnServer() as server:` is serving at `server.address`; leaving the block stops it.

    Its metrics are at `server.metrics_url`.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        on_progress: Callable[[str], None] = lambda line: None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """`command` takes the options of `serve`; `on_progress` gets each line the server prints, on another thread."""
        self._command = list(command or serve_command())
        self._on_progress = on_progress
        self._start_timeout_s = start_timeout_s
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.address = ""
        self.metrics_url = ""

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None, "the server has been started"
        return self._process.pid

    def __enter__(self) -> Self:
        with tempfile.TemporaryDirectory(prefix="cloudcomplete-") as directory:
            port_file = Path(directory) / "port"
            metrics_port = _free_port()
            self.metrics_url = f"http://{HOST}:{metrics_port}"
            options = ["--host", HOST, "--grpc-port", "0", "--port-file", str(port_file), "--stop-at-eof"]
            options += ["--set", f"server.metrics_port={metrics_port}"]
            options += ["--set", "cache.shared=none", "--set", "cache.snapshot_s=0"]  # what it learns ends with it
            # A project that somebody indexed on this machine must not change what is measured.
            options += ["--set", f"server.repository_directory={Path(directory) / 'none'}"]
            self._process = subprocess.Popen(
                [*self._command, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
            self._reader = threading.Thread(target=self._read, name="own-server", daemon=True)
            self._reader.start()
            try:
                self._wait(port_file)
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Stop the process by its id and return its exit code; harmless when repeated."""
        process = self._process
        assert process is not None, "the server has been started"
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._reader is not None:
            self._reader.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.returncode

    def _read(self) -> None:
        assert self._process is not None, "started"
        assert self._process.stdout is not None, "started with a pipe"
        for line in self._process.stdout:
            self._tail.append(line.rstrip("\n"))
            self._on_progress(line.rstrip("\n"))

    def _wait(self, port_file: Path) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        while not port_file.exists():
            self._check(deadline_s)
            time.sleep(_POLL_S)
        self.address = f"{HOST}:{int(port_file.read_text())}"
        with Client(self.address) as client:
            while True:
                self._check(deadline_s)
                try:
                    return client.wait_until_serving(timeout_s=0.5)
                except UnavailableError:
                    continue

    def _check(self, deadline_s: float) -> None:
        assert self._process is not None, "started"
        code = self._process.poll()
        if code is None and time.monotonic() < deadline_s:
            return
        if code is not None and self._reader is not None:
            self._reader.join()  # so that the last words are there
        what = f"did not serve within {self._start_timeout_s:g} s" if code is None else f"ended with code {code}"
        said = next((line for line in reversed(self._tail) if line.strip()), "nothing")
        raise OwnServerError(f"the server started for this command {what}; its last line: {said}")


def _free_port() -> int:
    """Return a port on which nobody listens at the moment; should another program be quicker, the start fails."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
