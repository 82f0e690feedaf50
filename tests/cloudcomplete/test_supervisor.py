"""The supervisor, over processes that only wait: starts all again when one is lost, and leaves no leader behind."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

# Each line is one write: of what `print` writes in pieces, as it does unbuffered, two processes make one line.
WAITING = """
import os, signal, sys
os.write(1, f"{sys.argv[2]} {os.getppid()} {os.getpid()}\\n".encode())
signal.pause()
"""
SUPERVISE = f"""
import os, sys
from cloudcomplete.supervisor import Supervisor
command = [sys.executable, "-c", {WAITING!r}]
sys.exit(Supervisor(command, 2, report=lambda line: os.write(1, line.encode() + b"\\n")).run())
"""


@pytest.fixture
def supervisor() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", SUPERVISE], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def started(supervisor: "subprocess.Popen[str]") -> dict[int, int]:
    """Wait until a leader and a follower wait, and return their ids."""
    found: dict[int, int] = {}
    assert supervisor.stdout is not None
    while len(found) < 2:
        words = supervisor.stdout.readline().split()
        if words[1] == str(supervisor.pid):
            found[int(words[0])] = int(words[2])
    return found


def test_a_lost_process_has_all_started_again(supervisor: "subprocess.Popen[str]") -> None:
    first = started(supervisor)
    os.kill(first[0], signal.SIGKILL)
    again = started(supervisor)
    assert not set(first.values()) & set(again.values())
    supervisor.terminate()
    assert supervisor.wait(30) == 256 - signal.SIGTERM, "the leader's code is the group's"


def test_a_leader_is_told_to_stop_when_its_supervisor_is_killed(supervisor: "subprocess.Popen[str]") -> None:
    processes = started(supervisor)
    watch = os.pidfd_open(processes[0])
    supervisor.kill()
    try:
        assert select.select([watch], [], [], 30)[0], "the leader goes on"
    finally:
        os.close(watch)
        os.kill(processes[1], signal.SIGKILL)
