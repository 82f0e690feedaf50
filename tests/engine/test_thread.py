import threading
import time

import pytest

from engine.errors import EngineClosedError
from engine.thread import EngineThread
from engine.types import Output, Request, SamplingParams


class Waiter:
    """A sink that lets a test wait for the end."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.ended = threading.Event()

    def __call__(self, output: Output) -> None:
        self.outputs.append(output)
        if output.finish:
            self.ended.set()

    def finish(self):
        assert self.ended.wait(10), "the request did not end"
        return self.outputs[-1].finish


def request(name: str, max_tokens: int = 4) -> Request:
    return Request(request_id=name, before="x = 1\n", cut=6, sampling=SamplingParams(max_tokens=max_tokens))


@pytest.fixture
def thread(engine):
    running = EngineThread(engine)
    yield running
    running.close(timeout_s=0)


def test_requests_of_many_threads_all_finish(thread) -> None:
    waiters = [Waiter() for _ in range(24)]
    threads = [
        threading.Thread(target=thread.submit, args=(request(str(i)), waiter)) for i, waiter in enumerate(waiters)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert {waiter.finish().state for waiter in waiters} == {"finished"}
    assert thread.stats().num_finished == 24


def test_cancelling_from_another_thread_ends_the_request(thread, runner) -> None:
    runner.run = slowed(runner.run)
    waiter = Waiter()
    thread.submit(request("a", max_tokens=200), waiter)
    thread.cancel("a")
    assert waiter.finish().state == "cancelled"


def test_closing_lets_accepted_requests_end(thread) -> None:
    waiter = Waiter()
    thread.submit(request("a", max_tokens=50), waiter)
    thread.close(timeout_s=10)
    assert waiter.finish().state == "finished"
    assert not thread.is_alive
    with pytest.raises(EngineClosedError):
        thread.submit(request("b"), Waiter())


def test_closing_fails_what_takes_too_long(thread, runner) -> None:
    runner.run = slowed(runner.run)
    waiter = Waiter()
    thread.submit(request("a", max_tokens=200), waiter)
    thread.close(timeout_s=0.05)
    assert waiter.finish().state == "failed"
    assert "the engine stopped before the request was done" in waiter.finish().error


def test_a_defect_in_the_thread_fails_everything_and_refuses_more(thread, runner, caplog) -> None:
    def broken(*step):
        raise ZeroDivisionError

    runner.run = broken
    waiter = Waiter()
    thread.submit(request("a"), waiter)
    assert waiter.finish().error == "the engine failed; see the server's log"
    assert "ended because of a defect" in caplog.text
    with pytest.raises(EngineClosedError):
        thread.submit(request("b"), Waiter())


def slowed(run):
    def slow(*step):
        time.sleep(0.01)
        return run(*step)

    return slow
