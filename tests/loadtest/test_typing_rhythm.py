"""The rhythm of typing: events stay in their second and in order, and have the gaps of real keys."""

import math

from hypothesis import given
from hypothesis import strategies as st

from loadtest.typing_rhythm import MEDIAN_GAP_S, P90_GAP_S, has_whole_seconds, spread


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 5))
def test_events_stay_in_their_second_and_in_order(seconds: list[int], seed: int) -> None:
    times_s = [float(second) for second in sorted(seconds)]
    placed = spread(times_s, seed=seed)
    assert [math.floor(time_s) for time_s in placed] == times_s
    assert placed == sorted(placed)
    assert placed == spread(times_s, seed=seed)


def test_the_seed_decides_the_places() -> None:
    assert spread([0.0, 0.0, 0.0], seed=1) != spread([0.0, 0.0, 0.0], seed=2)


def test_gaps_inside_a_second_that_has_room_are_those_of_real_typing() -> None:
    times_s = [float(second) for second in range(0, 20_000, 10) for _ in range(2)]
    placed = spread(times_s, seed=0)
    gaps = sorted(b - a for a, b in zip(placed[::2], placed[1::2], strict=True))
    assert abs(gaps[len(gaps) // 2] - MEDIAN_GAP_S) < 0.02
    assert abs(gaps[len(gaps) * 9 // 10] - P90_GAP_S) < 0.06


def test_typing_goes_on_over_the_end_of_a_second() -> None:
    placed = spread([float(second) for second in range(2000) for _ in range(5)], seed=0)
    gaps = sorted(b - a for a, b in zip(placed[4::5], placed[5::5], strict=False))
    assert gaps[len(gaps) // 2] < 0.35


def test_whole_seconds_are_recognised() -> None:
    assert has_whole_seconds([1.0, 5.0])
    assert not has_whole_seconds([1.0, 5.25])
