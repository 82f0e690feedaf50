"""The rhythm of typing, for recordings that only know the second."""

import math
import random
from collections.abc import Sequence

MEDIAN_GAP_S = 0.138
P90_GAP_S = 0.450
_MU = math.log(MEDIAN_GAP_S)
_SIGMA = math.log(P90_GAP_S / MEDIAN_GAP_S) / 1.2815515655446004  # the standard normal's 90th percentile


def has_whole_seconds(times_s: Sequence[float]) -> bool:
    """Tell whether a recording's times have no fractions, as a clock that counts seconds writes them."""
    return all(time_s == math.floor(time_s) for time_s in times_s)


def spread(times_s: Sequence[float], *, seed: int) -> list[float]:
    """Place events inside their seconds, in order, with the gaps of real typing.

    Gaps are drawn from the log-normal distribution with the median and the 90th percentile above. The first gap of a
    second counts from the event before, where that one was in the second before; a second too full for the gaps drawn
    has them shortened, all by the same factor. `times_s` must not fall.
    """
    draw = random.Random(f"typing-rhythm/{seed}")
    placed: list[float] = []
    begin = 0
    while begin < len(times_s):
        second_s = times_s[begin]
        end = begin
        while end < len(times_s) and times_s[end] == second_s:
            end += 1
        gaps = [draw.lognormvariate(_MU, _SIGMA) for _ in range(begin, end)]
        first_s = second_s + gaps[0] % 1.0
        if placed and second_s - 1.0 <= placed[-1]:
            first_s = min(max(second_s, placed[-1] + gaps[0]), second_s + gaps[0] % 1.0)
        room_s = second_s + 1.0 - first_s
        needed_s = sum(gaps[1:])
        scale = min(1.0, 0.999 * room_s / needed_s) if needed_s else 1.0
        at_s = first_s
        placed.append(at_s)
        for gap_s in gaps[1:]:
            at_s += gap_s * scale
            placed.append(at_s)
        begin = end
    return placed
