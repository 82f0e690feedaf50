"""Lines that move."""

import io

import pytest

from cloudcomplete import progress
from cloudcomplete.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_bar_is_redrawn_in_place_with_what_is_left_and_cleared_in_the_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    out = Terminal()
    bar = ProgressBar(out, total=1200, unit="rows")
    bar.show(1)
    clock.now_s += 0.05
    bar.show(2, "too soon")
    clock.now_s += 5.95
    bar.show(300, "exact match 0.500")
    bar.end()
    bar.show(301)
    assert out.getvalue().split("\r\x1b[K") == [
        "",
        "[........................] 1 of 1,200 rows",
        "[######..................] 300 of 1,200 rows, exact match 0.500, 0:18 l",  # as wide as the terminal
        "",
    ]


def test_a_log_gets_a_line_every_ten_seconds(clock: Clock) -> None:
    out = io.StringIO()
    bar = ProgressBar(out, total=4, unit="rows")
    for num_done in range(1, 5):
        clock.now_s += 6
        bar.show(num_done)
    bar.end()
    assert out.getvalue().splitlines() == [
        "[############............] 2 of 4 rows, 0:12 left",
        "[########################] 4 of 4 rows",
    ]
