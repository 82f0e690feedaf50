"""The server that a command starts for itself."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from cloudcomplete.errors import OwnServerError
from cloudcomplete.own_server import OwnServer, serve_command
from server.client import Client
from tests.server.counting_engine import WAIT_S

COUNTING_SERVER = [sys.executable, str(Path(__file__).parents[1] / "server" / "counting_server.py")]
ROOT = Path(__file__).parents[2]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_serves_inside_the_block_and_is_gone_after_it() -> None:
    lines: list[str] = []
    with OwnServer(COUNTING_SERVER, on_progress=lines.append) as server:
        with Client(server.address) as client:
            assert client.complete("7", max_tokens=2).text == "8 9 "
        with urlopen(f"{server.metrics_url}/metrics") as page:
            assert b"cloudcomplete_requests_finished_total 1.0" in page.read()
        assert is_running(server.pid)
    assert not is_running(server.pid)
    assert lines[0].startswith("listening on 127.0.0.1:")
    assert lines[-1] == "stopped"
    assert server.stop() == 0


def test_an_error_inside_the_block_stops_it_too() -> None:
    server = OwnServer(COUNTING_SERVER)
    with pytest.raises(KeyError), server:
        raise KeyError
    assert not is_running(server.pid)


def test_one_that_cannot_load_ends_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTING_LOAD_ERROR", "no config.json here")
    with pytest.raises(OwnServerError) as raised:
        OwnServer(COUNTING_SERVER).__enter__()
    assert str(raised.value) == (
        "the server started for this command ended with code 1; its last line: cloudcomplete: no config.json here"
    )


def test_one_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTING_LOAD_S", "60")
    server = OwnServer(COUNTING_SERVER, start_timeout_s=0.3)
    with pytest.raises(OwnServerError) as raised:
        server.__enter__()
    assert str(raised.value).startswith(
        "the server started for this command did not serve within 0.3 s; its last line: "
    )
    assert not is_running(server.pid)


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    script = (
        "import sys; from cloudcomplete.own_server import OwnServer\n"
        "with OwnServer(sys.argv[1:]) as server: print(server.pid, server.address, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, *COUNTING_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as parent:
        assert parent.stdout is not None
        pid, address = parent.stdout.readline().split()
        parent.send_signal(signal.SIGKILL)
    try:
        with Client(address) as client:
            deadline_s = time.monotonic() + WAIT_S
            while client.is_serving() and time.monotonic() < deadline_s:
                time.sleep(0.01)
            assert not client.is_serving()
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def test_the_command_of_the_real_server_uses_this_interpreter() -> None:
    assert serve_command(["--set", "a.b=1"]) == [sys.executable, "-P", "-m", "cloudcomplete", "serve", "--set", "a.b=1"]
