"""What the times lead to, with a clock that is wound by hand; that the races run at all, without any limit."""

from collections.abc import Iterator
from itertools import chain, cycle, repeat
from pathlib import Path

import pytest

from engine import self_test, speed_test
from engine.model.block_sparse import native_sparse_attention, xla_sparse_attention
from engine.self_test import Sizes, verdicts
from engine.speed_test import LIMIT, Race, Times, judge, race_sparse_attention, run_races


class Clock:
    """Seconds that pass only where a call is made to take some."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_calls = 0

    def __call__(self) -> float:
        return self.now

    def call(self, seconds: Iterator[float]):
        def run() -> None:
            self.num_calls += 1
            self.now += next(seconds)

        return run


def race(path: Iterator[float], reference: Iterator[float]) -> tuple[str | None, int]:
    """What comes of two calls that take such times, and how often each was made."""
    clock = Clock()
    found = run_races([Race("decode", clock.call(path), clock.call(reference))], clock=clock)
    return found, clock.num_calls // 2


def test_a_path_that_is_about_as_fast_or_faster_is_kept_after_one_try() -> None:
    for seconds in (1e-4, 1e-3, 1.99e-3):
        assert race(repeat(seconds), repeat(1e-3)) == (None, 6), "a first call to warm up, then 5"


def test_a_path_that_is_ten_times_slower_is_left_and_the_reason_has_the_times() -> None:
    found, num_runs = race(repeat(1e-2), repeat(1e-3))
    assert found == (
        "it takes 10.0 times as long as XLA, expected at most 2.0 times (decode: 10.00 ms, 1.00 ms on XLA)"
    )
    assert num_runs == 1 + 3 * 5, "it was tried again before it was left"


def test_single_runs_that_were_disturbed_decide_nothing() -> None:
    assert race(cycle([1e-3, 1e-3, 5e-2]), repeat(1e-3))[0] is None


def test_a_path_is_left_only_when_it_is_slow_every_time() -> None:
    disturbed = [3e-3] * 11
    assert race(chain(disturbed, repeat(1e-3)), repeat(1e-3)) == (None, 16)


def test_the_time_of_compiling_is_not_held_against_a_path() -> None:
    assert race(chain([9.0], repeat(1e-3)), repeat(1e-3))[0] is None


def test_a_loss_in_one_case_must_be_made_up_for_in_another() -> None:
    slow_decode, fast_chunk = Times("decode", 5e-3, 1e-3), Times("chunk", 1e-2, 2e-2)
    assert judge([slow_decode, fast_chunk]) is None
    assert "(decode: 5.00 ms" in (judge([slow_decode, Times("chunk", 2e-2, 2e-2)]) or "")
    assert judge([Times("decode", LIMIT, 1)]) is None


@pytest.fixture
def seen(monkeypatch) -> list[list[Race]]:
    """Races that ran, one call of each, untimed."""
    ran: list[list[Race]] = []

    def run(races: list[Race]) -> None:
        for one in races:
            one.path()
            one.reference()
        ran.append(races)

    monkeypatch.setattr(speed_test, "run_races", run)
    return ran


def test_every_kernel_has_a_race_of_a_decode_and_a_chunk(kernels: Path, seen) -> None:
    sizes = Sizes(head_size=16, matrices=((16, 48), (20, 16), (16, 70)))
    for check in ("attention speed", "panels speed", "int8 panels speed"):
        assert self_test.CHECKS[check](sizes) is None
    assert [[one.name for one in races] for races in seen] == [["decode", "chunk"], *[["1 rows", "64 rows"]] * 2]


def test_block_sparse_paths_can_be_raced(kernels: Path, seen) -> None:
    for path in (xla_sparse_attention, native_sparse_attention):
        assert race_sparse_attention(path, xla_sparse_attention, head_size=16, dtype="float32") is None
    assert len(seen) == 2


def test_the_verdict_is_kept_with_the_others(kernels: Path, tmp_path: Path, monkeypatch) -> None:
    sizes = Sizes(head_size=16, matrices=((16, 48), (20, 16), (16, 70)))
    checks = ("panels", "panels speed")
    found = {"panels": None, "panels speed": "it takes 2.0 times as long as XLA"}
    monkeypatch.setattr(self_test, "_run_in_child", lambda *_: (found, {}))
    assert verdicts(checks, sizes, library=kernels, directory=tmp_path) == found
    monkeypatch.setattr(self_test, "_run_in_child", None)
    assert verdicts(checks, sizes, library=kernels, directory=tmp_path) == found
