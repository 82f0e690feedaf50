"""Stretches: where in a trace each user of a replay begins, and how far each goes. Decided by the seed alone."""

import random
from collections.abc import Sequence

import msgspec

from loadtest.errors import TraceError


class Stretch(msgspec.Struct, frozen=True):
    """Consecutive keystrokes of a trace."""

    first: int
    count: int


def choose_stretches(times_s: Sequence[float], *, users: int, count: int | None, seed: int) -> list[Stretch]:
    """Return a stretch for each user; `times_s` says when each keystroke of the trace is. Raises TraceError.

    Stretches of `count` keystrokes come from the active half: those that took at most as long as the median one, pauses
    and edits between the keystrokes included. They begin at different places while there are enough; more users do not
    move the first ones. Without `count` every user types the whole trace, the first from its beginning, the others from
    somewhere else and on from the beginning.
    """
    draw = random.Random(f"stretches/{seed}")
    if count is None:
        return [Stretch(draw.randrange(len(times_s)) if user else 0, len(times_s)) for user in range(users)]
    if count > len(times_s):
        raise TraceError(
            f"{count:,} consecutive keystrokes were asked for, but the trace has {len(times_s):,}; ask for fewer"
        )
    spans_s = [times_s[first + count - 1] - times_s[first] for first in range(len(times_s) - count + 1)]
    median_s = sorted(spans_s)[(len(spans_s) - 1) // 2]
    active = [first for first, span_s in enumerate(spans_s) if span_s <= median_s]
    draw.shuffle(active)
    return [Stretch(active[user % len(active)], count) for user in range(users)]
