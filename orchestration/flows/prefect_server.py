"""Prefect's server, started on loopback and stopped again, where nobody runs one. Knows no flow.

The server also stops when its standard input closes, so it does not outlive a parent that was killed; run as a program,
this module is that server.
"""

import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from orchestration.flows.errors import PrefectServerError

_ITSELF = "orchestration.flows.prefect_server"
_READY_S = 120.0
_STOP_S = 15.0


class LoopbackServer:
    """A running server."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process, self.api_url = process, f"http://127.0.0.1:{port}/api"


@contextlib.contextmanager
def loopback_server(
    home: Path, *, port: int = 0, has_ui: bool = False, is_embedded: bool = False
) -> Iterator[LoopbackServer]:
    """Run a server whose state is in `home`; ready when this returns. Raises PrefectServerError.

    `is_embedded`: for one run, beside which a server of the same `home` may keep the schedules.
    """
    port = port or _free_port()
    home.mkdir(parents=True, exist_ok=True)
    log_path = home / f"server-{port}.log"  # several may run on one home
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "true" if has_ui else "false",
    }
    environment.pop("PREFECT_API_URL", None)
    if is_embedded:
        environment["PREFECT__SERVER_EPHEMERAL"] = "1"  # as Prefect says it to the ones that it embeds
    arguments = [sys.executable, "-P", "-m", _ITSELF, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log, stdin=subprocess.PIPE)
        try:
            server = LoopbackServer(process, port)
            _wait_until_ready(server, log_path)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def is_answering(api_url: str) -> bool:
    """Tell whether a server answers at this address."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=10) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _wait_until_ready(server: LoopbackServer, log_path: Path) -> None:
    deadline_s = time.monotonic() + _READY_S
    while not is_answering(server.api_url):
        if server.process.poll() is not None or time.monotonic() > deadline_s:
            tail = log_path.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise PrefectServerError(
                f"Prefect's server did not come up at {server.api_url}: it said {tail[0]!r}; expected it within "
                f"{_READY_S:.0f} s; see {log_path}"
            )
        time.sleep(0.2)


def _stop_at_eof() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_S)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    threading.Thread(target=_stop_at_eof, daemon=True).start()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
