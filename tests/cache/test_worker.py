"""The background thread."""

import logging
import threading

import pytest

from cache.worker import Worker


def test_jobs_run_in_order_and_draining_waits_for_them() -> None:
    worker, done = Worker("w"), list[int]()
    for number in range(50):
        assert worker.submit(lambda number=number: done.append(number))
    assert worker.drain(timeout_s=10)
    assert done == list(range(50))
    assert worker.close(timeout_s=10)


def test_a_job_that_fails_is_logged_and_the_next_one_is_done(caplog: pytest.LogCaptureFixture) -> None:
    worker, done = Worker("w"), list[int]()
    worker.submit(lambda: 1 // 0)
    worker.submit(lambda: done.append(1))
    with caplog.at_level(logging.ERROR):
        assert worker.drain(timeout_s=10)
    assert (done, worker.num_failed) == ([1], 1)
    assert "a job of w failed; the next ones are done all the same" in caplog.text
    worker.close(timeout_s=10)


def test_closing_does_what_is_queued_and_takes_no_more() -> None:
    worker, done, may_go = Worker("w"), list[int](), threading.Event()
    worker.submit(may_go.wait)
    worker.submit(lambda: done.append(1))
    may_go.set()
    assert worker.close(timeout_s=10)
    assert done == [1]
    assert not worker.submit(lambda: done.append(2))
    assert worker.close(timeout_s=10)


def test_what_takes_too_long_is_given_up() -> None:
    worker, done, may_go = Worker("w"), list[int](), threading.Event()
    worker.submit(may_go.wait)
    worker.submit(lambda: done.append(1))
    assert not worker.drain(timeout_s=0.01)
    assert not worker.close(timeout_s=0.01)
    may_go.set()
    assert worker.close(timeout_s=10)
    assert done == []
