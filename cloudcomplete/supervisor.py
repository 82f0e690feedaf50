"""Starts the processes of one group on this machine, and all of them again when one is lost.

A process whose peer is gone cannot go on (`engine/group.py`), so the group is started as a whole, from outside. When
the supervisor itself is gone, even by SIGKILL, the leader is told to stop, and followers end with their leader.
"""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from engine.group import SECRET

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_STEADY_S = 60.0
"""A group that lived so long is started again at once."""
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class Supervisor:
    """Runs a command as a group of processes until it is told to stop."""

    def __init__(self, command: Sequence[str], num_processes: int, *, report: Callable[[str], None]) -> None:
        """`command` takes `--process` and `--coordinator` behind it."""
        self._command, self._num_processes, self._report = list(command), num_processes, report
        self._children: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()

    def run(self) -> int:
        """Keep the group running; returns the exit code once it was told to stop, or could not start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            self._start()
            try:
                code = self._wait_for_any()
            finally:
                self._end_all()
            if self._stopping.is_set() or code in (0, 1, 2):
                return code
            pause_s = _FIRST_PAUSE_S if time.monotonic() - began > _STEADY_S else min(pause_s * 2, _LONGEST_PAUSE_S)
            self._report(f"the group is broken; starting its {self._num_processes} processes again in {pause_s:g} s")
            if self._stopping.wait(pause_s):
                return 0

    def _start(self) -> None:
        coordinator = f"127.0.0.1:{_free_pair()}"
        environment = os.environ | {SECRET: secrets.token_hex(32)}
        self._children = [
            subprocess.Popen(
                [*self._command, "--process", str(process), "--coordinator", coordinator],
                env=environment,
                stdin=None if process == 0 else subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=partial(_stop_with, os.getpid()) if process == 0 else None,
            )
            for process in range(self._num_processes)
        ]
        self._report("processes " + " ".join(str(child.pid) for child in self._children))

    def _wait_for_any(self) -> int:
        """Return the exit code of the group: the leader's, or a follower's when the leader does not notice its end."""
        while True:
            codes = [child.poll() for child in self._children]
            if codes[0] is not None:
                return codes[0]
            ended = [code for code in codes[1:] if code is not None]
            if ended:
                try:  # the leader says why, and its clients hear of it
                    return self._children[0].wait(timeout=5.0)
                except subprocess.TimeoutExpired:
                    return ended[0]
            time.sleep(0.05)

    def _end_all(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()

    def _stop(self, number: int, frame: object) -> None:
        del frame
        self._stopping.set()
        if self._children and self._children[0].poll() is None:
            self._children[0].send_signal(number)


def _stop_with(supervisor: int) -> None:
    """Between fork and exec of a leader: have the system send it SIGTERM when the supervisor is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # gone already
        os._exit(1)


def _free_pair() -> int:
    """Return a port that is free, as is the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
