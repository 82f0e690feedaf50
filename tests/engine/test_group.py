"""The control connection of a group: who is let in, who is refused and why, what happens when one is lost."""

import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine import group
from engine.errors import ConfigError, GroupError
from engine.group import SECRET, SILENT_S, Follower, Leader, Membership, Ready, Reset, membership


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Membership]:
    monkeypatch.setattr(group, "JOIN_S", 10.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] - 1

    def make(process: int, *, num_processes: int = 2, secret: str = "s") -> Membership:
        return Membership(num_processes=num_processes, process=process, coordinator=f"127.0.0.1:{port}", secret=secret)

    return make


def join(*makers: Callable[[], Any]) -> list[Any]:
    """Make a leader and followers at the same time; return each, or its error."""
    results: list[Any] = [None] * len(makers)

    def work(i: int) -> None:
        try:
            results[i] = makers[i]()
        except GroupError as error:
            results[i] = str(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(makers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_followers_join_hear_calls_and_their_loss_is_noticed(member: Callable[..., Membership]) -> None:
    lost: list[str] = []
    leader, first, second = join(
        lambda: Leader(member(0, num_processes=3), "m", on_lost=lost.append),
        lambda: Follower(member(1, num_processes=3), "m"),
        lambda: Follower(member(2, num_processes=3), "m"),
    )
    for follower in (first, second):
        follower._connection.send(Ready())
    leader.wait_ready()
    leader.send(Reset())
    assert [follower._connection.receive() for follower in (first, second)] == [Reset(), Reset()]
    assert not lost
    second._connection._socket.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + 10
    while not lost:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for end in (leader, first, second):
        end.close()
    assert lost == ["process 2 is lost: the other process closed the control connection"]


def test_a_follower_that_is_busy_notices_that_its_leader_is_gone(member: Callable[..., Membership]) -> None:
    leader, follower = join(lambda: Leader(member(0), "m"), lambda: Follower(member(1), "m"))
    lost: "queue.Queue[str]" = queue.Queue()
    follower.watch(lost.put)
    leader._connections[1].send(Reset())  # unread: what the follower is doing takes long
    leader.close()
    assert lost.get(timeout=10) == "the leader is gone: its control connection ended"
    assert follower._connection.receive() == Reset(), "watching reads nothing"
    follower.close()


def test_a_follower_that_leaves_by_itself_has_lost_nobody(member: Callable[..., Membership]) -> None:
    leader, follower = join(lambda: Leader(member(0), "m"), lambda: Follower(member(1), "m"))
    lost: list[str] = []
    follower.watch(lost.append)
    [watching] = [thread for thread in threading.enumerate() if thread.name == "watch-leader"]
    follower.close()
    watching.join(10)
    assert not watching.is_alive()
    assert not lost
    leader.close()


def test_a_host_that_is_silent_is_found_by_keepalive(member: Callable[..., Membership]) -> None:
    leader, follower = join(lambda: Leader(member(0), "m"), lambda: Follower(member(1), "m"))
    for sock in (leader._connections[1]._socket, follower._connection._socket):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, pause, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + pause * count == SILENT_S
    leader.close()
    follower.close()


def test_a_process_that_ends_does_not_wait_for_who_does_not_read_its_log() -> None:
    script = (
        "import logging, threading\n"
        "from engine import group\n"
        "handler = logging.StreamHandler()\n"
        "handler.emit = lambda record: threading.Event().wait()\n"
        "group.logger.addHandler(handler)\n"
        "group._LOG_S = 0.1\n"
        "group.die('lost')\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == group.LOST


def test_a_follower_with_another_model_is_refused_on_both_sides(member: Callable[..., Membership]) -> None:
    leader, follower = join(lambda: Leader(member(0), "model a"), lambda: Follower(member(1), "model b"))
    assert leader == follower
    assert "process 1 has another model or other settings (model b); expected model a; start every" in leader


def test_a_follower_with_other_versions_is_refused(
    member: Callable[..., Membership], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = group.versions()
    monkeypatch.setattr(
        group, "versions", lambda: real | {"jax": "0.0"} if "follow" in threading.current_thread().name else real
    )

    def follow() -> Follower:
        threading.current_thread().name = "follower"
        return Follower(member(1), "m")

    leader, follower = join(lambda: Leader(member(0), "m"), follow)
    assert leader == follower
    assert f"process 1 runs jax 0.0 (the leader has {real['jax']}); install the same versions" in leader


def test_who_does_not_know_the_secret_is_sent_away_and_the_group_waits_on(
    member: Callable[..., Membership], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "JOIN_S", 1.0)
    leader, follower = join(lambda: Leader(member(0), "m"), lambda: Follower(member(1, secret="guess"), "m"))
    assert "the leader sent this process away; expected the same CLOUDCOMPLETE_GROUP_SECRET" in follower
    assert "1 of 1 followers did not come within 1 s; start them with the same --coordinator" in leader


def test_a_process_number_that_is_taken_is_refused(member: Callable[..., Membership]) -> None:
    leader, *followers = join(
        lambda: Leader(member(0, num_processes=3), "m"),
        lambda: Follower(member(1, num_processes=3), "m"),
        lambda: Follower(member(1, num_processes=3), "m"),
    )
    assert "a follower says it is process 1; expected each of 1 to 2 once; correct its --process" in leader
    assert leader in followers
    for follower in followers:
        if isinstance(follower, Follower):
            follower.close()


def test_without_a_leader_a_follower_gives_up(
    member: Callable[..., Membership], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "JOIN_S", 0.3)
    with pytest.raises(GroupError, match=r"the leader at 127.0.0.1:\d+ does not answer .* correct --coordinator"):
        Follower(member(1), "m")


def test_frames_that_are_none_of_ours_are_refused() -> None:
    ours, theirs = socket.socketpair()
    connection = group.Connection(ours) if ours.family == socket.AF_INET else None
    if connection is None:
        connection = object.__new__(group.Connection)
        connection._socket, connection._decoder = ours, group.msgspec.msgpack.Decoder(group.Message)
    theirs.sendall(struct.pack(">I", 1 << 30))
    with pytest.raises(GroupError, match=r"a control message claims 1,073,741,824 bytes; expected at most"):
        connection.receive()
    theirs.sendall(struct.pack(">I", 2) + b"\x81\xc0")
    with pytest.raises(GroupError, match="a control message is none of this version"):
        connection.receive()
    ours.close()
    theirs.close()


def test_a_command_line_that_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "s")
    assert membership(2, 1, "h:5000").control_address == ("h", 5001)
    with pytest.raises(ConfigError, match=r"--process is 2 of 2 processes; expected 0 \(the leader\) to 1"):
        membership(2, 2, "h:5000")
    with pytest.raises(ConfigError, match=r"--coordinator is 'h'; expected HOST:PORT of the leader"):
        membership(2, 1, "h")
    monkeypatch.delenv(SECRET)
    with pytest.raises(ConfigError, match=r"CLOUDCOMPLETE_GROUP_SECRET is not set; expected the same long random"):
        membership(2, 1, "h:5000")
