"""What `bench soak` makes of its rows."""

import pytest

from loadtest.benchmarks import soak
from loadtest.errors import RunError


def test_the_last_third_is_set_against_the_middle_one() -> None:
    rows = [
        {"first_text_p50_ms": p50, "first_text_p95_ms": 100.0, "resident_mb": mb, "open_files": 30, "errors": 1}
        for p50, mb in ((90.0, 10.0), (90.0, 500.0), (10.0, 600.0), (None, 610.0), (20.0, 640.0), (20.0, 650.0))
    ]
    assert soak.summarise(rows) == {
        "resident_mb": 650.0,
        "resident_growth_mb": 40.0,
        "first_text_p50_late_over_middle": 2.0,
        "first_text_p95_late_over_middle": 1.0,
        "open_files_growth": 0.0,
        "errors": 6.0,
    }


def test_a_length_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDCOMPLETE_SOAK_S", "long")
    with pytest.raises(RunError, match="CLOUDCOMPLETE_SOAK_S is 'long'; expected seconds, such as 1800"):
        soak._seconds()
