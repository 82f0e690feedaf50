"""A Redis server of its own on loopback, where Debian's `redis-server` is installed."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.errors import RunError

PROGRAM = shutil.which("redis-server")
_START_S = 30.0


@contextmanager
def running_redis(port: int, directory: Path) -> Iterator[None]:
    """Run a server without persistence until the end of the block; raises RunError."""
    if PROGRAM is None:
        raise RunError("redis-server is not installed; expected it on the PATH")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(directory)]
    process = subprocess.Popen([PROGRAM, *options], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise RunError(f"{PROGRAM} did not open port {port} within {_START_S:g} s") from None
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def count_keys(port: int) -> int:
    """Return how many keys a server on loopback holds; raises OSError where there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"DBSIZE\r\n")
        return int(connection.recv(64).strip().lstrip(b":"))
