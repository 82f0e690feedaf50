import numpy as np
import pytest

from orchestration.allocator.evaluate import interval_of
from orchestration.allocator.oracle import plan


def test_a_confidence_interval_is_students() -> None:
    mean, low, high = interval_of([1.0, 2.0, 3.0])
    assert mean == 2
    assert (low, high) == (pytest.approx(2 - 4.303 / 3**0.5), pytest.approx(2 + 4.303 / 3**0.5))
    assert interval_of([1.0])[1] == -float("inf")


def test_a_plan_starts_ahead_gives_up_peaks_and_closes_dips() -> None:
    needed = np.array([2, 2, 5, 2, 2, 3, 2, 3, 3])
    plain = plan(needed, spared=0, longest_dip=0, window_intervals=2, lead=1)
    assert plain.tolist() == [2, 2, 2, 5, 5, 5, 2, 2, 2, 3, 3, 3, 2, 3, 3, 3, 3, 3]
    shaped = plan(needed, spared=1, longest_dip=1, window_intervals=2, lead=0)
    assert shaped[::2].tolist() == [2, 2, 2, 2, 2, 3, 3, 3, 3]
