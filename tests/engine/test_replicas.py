"""Replicas behind the router: affinity, growth and shrinkage under load, losses."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from engine.engine import Engine
from engine.errors import EngineClosedError, QueueFullError, RequestError
from engine.replicas import Replicas, ReplicaState
from engine.thread import EngineThread
from engine.tokenizer import Tokenizer
from engine.types import CompletionEngine, Request, SamplingParams
from tests.engine.conftest import Recorder
from tests.engine.counting_runner import CountingRunner

MakeEngine = Callable[..., Engine]


def request(request_id: str, *, session: str = "", max_tokens: int = 5) -> Request:
    return Request(
        request_id=request_id, before="def f(", session=session, sampling=SamplingParams(max_tokens=max_tokens)
    )


class SlowRunner(CountingRunner):
    """Steps last long enough for requests to be open together."""

    def run(self, *arguments, **named):  # type: ignore[no-untyped-def]
        time.sleep(0.002)
        return super().run(*arguments, **named)


@pytest.fixture
def make_replicas(
    make_engine: MakeEngine, ascii_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Replicas]]:
    made: list[Replicas] = []

    def make(num_replicas: int, *, max_waiting: int = 100) -> Replicas:
        def make_one(replica: int) -> CompletionEngine:
            del replica
            engine = make_engine(max_waiting=max_waiting)
            monkeypatch.setattr(engine, "_runner", SlowRunner(ascii_ids))
            return EngineThread(engine)

        made.append(Replicas(make_one, num_replicas))
        return made[-1]

    yield make
    for replicas in made:
        replicas.close(timeout_s=0)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.002)


def place_of(replicas: Replicas, session: str) -> int:
    """Send one request of a session and tell which replica got it."""
    before = {stats.replica: stats.engine.num_finished for stats in replicas.replica_stats()}
    sink = Recorder()
    replicas.submit(request(f"place of {session}", session=session, max_tokens=1), sink)
    wait_until(lambda: sink.finish is not None)
    [place] = [s.replica for s in replicas.replica_stats() if s.engine.num_finished > before.get(s.replica, 0)]
    return place


def count(replicas: Replicas, state: ReplicaState) -> int:
    return replicas.count(state)


def test_replicas_answer_as_one_engine_does(
    make_replicas: Callable[..., Replicas], engine: Engine, tokenizer: Tokenizer
) -> None:
    del tokenizer
    alone, sinks = Recorder(), [Recorder() for _ in range(8)]
    engine.submit(request("alone"), alone)
    while engine.has_work():
        engine.step()
    replicas = make_replicas(2)
    for i, sink in enumerate(sinks):
        replicas.submit(request(f"r{i}"), sink)
    wait_until(lambda: all(sink.finish is not None for sink in sinks))
    assert {sink.text for sink in sinks} == {alone.text}
    stats = replicas.stats()
    assert (stats.num_slots, stats.num_finished) == (8, 8)
    assert all(one.engine.num_finished for one in replicas.replica_stats()), "one replica did everything"
    assert stats.max_context == replicas.replica_stats()[0].engine.max_context > 0, "room of one sequence is no sum"
    replicas.check_integrity()


def test_a_session_stays_and_only_those_of_a_replica_that_leaves_move(make_replicas: Callable[..., Replicas]) -> None:
    replicas = make_replicas(3)
    sessions = [f"s{i}" for i in range(12)]
    first = {session: place_of(replicas, session) for session in sessions}
    assert {session: place_of(replicas, session) for session in sessions} == first
    assert len(set(first.values())) == 3
    replicas.drain(1)
    wait_until(lambda: len(replicas.replica_stats()) == 2)
    then = {session: place_of(replicas, session) for session in sessions}
    assert all(then[session] == first[session] for session in sessions if first[session] != 1)
    assert replicas.stats().num_finished == 36, "the counters of the replica that is gone were lost"


def test_growing_and_shrinking_under_load_loses_no_request(make_replicas: Callable[..., Replicas]) -> None:
    replicas = make_replicas(2)
    sinks: list[Recorder] = []
    is_done = threading.Event()

    def send() -> None:
        while not is_done.is_set():
            sinks.append(Recorder())
            replicas.submit(request(f"r{len(sinks)}", session=f"s{len(sinks) % 7}"), sinks[-1])
            time.sleep(0.001)

    sender = threading.Thread(target=send)
    sender.start()
    for _ in range(3):
        new = replicas.add()
        wait_until(lambda: count(replicas, "ready") == 3)
        oldest = min(stats.replica for stats in replicas.replica_stats())
        replicas.drain(oldest)
        wait_until(lambda: len(replicas.replica_stats()) == 2)
        assert new in {stats.replica for stats in replicas.replica_stats()}
    is_done.set()
    sender.join()
    wait_until(lambda: all(sink.finish is not None for sink in sinks))
    assert {sink.finish.state for sink in sinks if sink.finish} == {"finished"}
    assert replicas.stats().num_finished == len(sinks)
    replicas.check_integrity()


def test_a_draining_replica_ends_what_it_has(make_replicas: Callable[..., Replicas]) -> None:
    replicas, sink = make_replicas(2), Recorder()
    replicas.submit(request("long", max_tokens=60), sink)
    [busy] = [stats.replica for stats in replicas.replica_stats() if stats.num_open]
    replicas.drain(busy)
    assert count(replicas, "draining") == 1
    wait_until(lambda: len(replicas.replica_stats()) == 1)
    assert sink.finish is not None
    assert sink.finish.state == "finished"


def test_the_last_ready_replica_is_not_drained(make_replicas: Callable[..., Replicas]) -> None:
    replicas = make_replicas(1)
    with pytest.raises(ValueError, match="replica 0 is the last that is ready"):
        replicas.drain(0)
    with pytest.raises(ValueError, match=r"replica 7 is not ready; expected one of \[0\]"):
        replicas.drain(7)


def test_a_full_replica_is_passed_over_and_when_all_are_full_the_client_hears(
    make_replicas: Callable[..., Replicas],
) -> None:
    replicas, sinks = make_replicas(2, max_waiting=0), [Recorder() for _ in range(9)]
    for i in range(8):
        replicas.submit(request(f"r{i}", session="one", max_tokens=100), sinks[i])
    with pytest.raises(QueueFullError, match="the queue is full"):
        replicas.submit(request("r8", session="one"), sinks[8])
    replicas.check_integrity()


def test_one_request_id_is_open_once_over_all_replicas(make_replicas: Callable[..., Replicas]) -> None:
    replicas = make_replicas(2)
    replicas.submit(request("same", max_tokens=100), Recorder())
    with pytest.raises(RequestError, match="request_id 'same' is in use"):
        replicas.submit(request("same"), Recorder())


def test_cancelling_reaches_the_replica(make_replicas: Callable[..., Replicas]) -> None:
    replicas, sink = make_replicas(2), Recorder()
    replicas.submit(request("r", max_tokens=200), sink)
    replicas.cancel("r")
    replicas.cancel("unknown")
    wait_until(lambda: sink.finish is not None)
    assert sink.finish is not None
    assert sink.finish.state == "cancelled"


def test_a_lost_replica_ends_its_requests_and_the_others_go_on(make_replicas: Callable[..., Replicas]) -> None:
    replicas, sink = make_replicas(2), Recorder()
    replicas.submit(request("r", session="s", max_tokens=200), sink)
    [broken] = [stats.replica for stats in replicas.replica_stats() if stats.num_open]

    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    replicas._replicas[broken].engine._engine._runner.run = break_down  # type: ignore[union-attr,attr-defined]
    wait_until(lambda: sink.finish is not None)
    assert sink.finish is not None
    assert sink.finish.state == "failed"
    wait_until(lambda: count(replicas, "lost") == 1)
    assert replicas.is_alive
    assert place_of(replicas, "s") != broken


def test_after_closing_nothing_is_accepted(make_replicas: Callable[..., Replicas]) -> None:
    replicas = make_replicas(2)
    replicas.close(timeout_s=0)
    with pytest.raises(EngineClosedError, match="no replica accepts requests"):
        replicas.submit(request("r"), Recorder())
    with pytest.raises(EngineClosedError, match="the replicas are closing"):
        replicas.add()
    assert not replicas.is_alive


def test_a_replica_that_cannot_be_made_disappears(
    make_replicas: Callable[..., Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = make_replicas(1)

    def fail(replica: int) -> CompletionEngine:
        raise MemoryError(f"no room for replica {replica}")

    monkeypatch.setattr(replicas, "_make", fail)
    replicas.add()
    wait_until(lambda: len(replicas.replica_stats()) == 1)
    assert count(replicas, "ready") == 1
