import numpy as np
import pytest

from orchestration.allocator.evaluate import interval_of, tabulate, thin
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


def test_a_course_is_thinned_to_means_of_equal_parts() -> None:
    assert thin(np.arange(7, dtype=np.float32), 3) == [1.0, 4.0]
    assert thin(np.ones(2, np.float32)) == [1.0, 1.0]


def test_the_table_has_means_with_intervals_the_cheapest_first() -> None:
    figures = dict.fromkeys(("attainment", "p95_s", "p99_s", "dropped", "changes_per_hour"), 1.0)
    rows = [
        {"policy": "dear", "replica_hours": 9.0, **figures},
        {"policy": "cheap", "replica_hours": 2.0, "replica_hours_ci_low": 1.5, "replica_hours_ci_high": 2.5, **figures},
    ]
    table = tabulate(rows).splitlines()
    assert table[2] == "| cheap | 2.0 [1.5, 2.5] | 1.0000 | 1.000 | 1.000 | 1 | 1.0 |"
    assert table[3].startswith("| dear | 9.0 | ")
    assert len({line.count("|") for line in table}) == 1
