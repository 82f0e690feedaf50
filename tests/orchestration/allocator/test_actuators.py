import threading
import time
from collections.abc import Callable

from engine.replicas import Replicas
from engine.types import EngineStats, Finish, Output, Request, Sink, Usage
from orchestration.allocator.actuators import ReplicasActuator


class HeldEngine:
    """Answers what it has accepted when it is let go."""

    is_alive, identity = True, "held"

    def __init__(self, gate: threading.Event) -> None:
        self._gate, self._threads = gate, list[threading.Thread]()

    def submit(self, request: Request, sink: Sink) -> None:
        def answer() -> None:
            self._gate.wait(10)
            sink(
                Output(
                    request_id=request.request_id,
                    text="x",
                    finish=Finish(state="finished", reason="stop", usage=Usage()),
                )
            )

        self._threads.append(threading.Thread(target=answer))
        self._threads[-1].start()

    def cancel(self, request_id: str) -> None:
        raise AssertionError(f"{request_id} was cancelled")

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self, *, timeout_s: float) -> None:
        for thread in self._threads:
            thread.join()


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 10 s")


def test_replicas_come_and_go_under_open_requests_and_none_is_lost() -> None:
    gate = threading.Event()
    replicas = Replicas(lambda number: HeldEngine(gate), 1)
    actuator = ReplicasActuator(replicas)
    answered: list[str] = []
    actuator.apply(3)
    wait_until(lambda: replicas.count("ready") == 3)
    for number in range(30):
        replicas.submit(
            Request(request_id=f"{number}", before="", session=f"s{number}"),
            lambda output: answered.append(output.request_id),
        )
    actuator.apply(1)
    assert (replicas.count("ready"), replicas.count("draining")) == (1, 2)
    actuator.apply(0)
    assert replicas.count("ready") == 1
    gate.set()
    wait_until(lambda: replicas.count("draining") == 0)
    replicas.close(timeout_s=1)
    assert sorted(answered, key=int) == [f"{number}" for number in range(30)]
