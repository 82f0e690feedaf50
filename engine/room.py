"""Room: whether one more request may come in without making those that are in wait too long.

Counting places does not bound a wait: 16 prompts at once make each take six times as long and more. So what is bounded
is how long requests take, against how long they take alone: of the interactive ones in hand, at most one in twenty may
need more than `max_slowdown` times what they would alone, in the time to their first token or to their end. What a
request would take alone follows from its size, by medians over those that had the engine to themselves: of
seconds to the first token for each prompt token computed, and of seconds from there for each token generated. The
number that may be in hand follows from that, by feedback: every request that was late makes it smaller, every one that
was not, while it was full, makes it a nineteenth of that larger, so that it settles where one in twenty is late
(stochastic approximation of a quantile, Robbins and Monro 1951). What has no room is
refused at once, with a hint when to try again, and costs nothing.

Tenants share the room: while several ask, each has an equal part of it, however much one of them asks. Work of lower
priority waits for idle moments anyway, and is bounded by the length of its queue alone.

Knows no clock but the one it is given, no slots and no device. Invariant: `num_in_hand` is the number of requests
entered and not left. Not thread-safe: the engine holds its lock.
"""

import math
import statistics
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from engine.types import FinishState, Usage

SHARE_LATE = 0.05
"""Of the requests admitted, so many may be late."""
_GAIN = 0.1
"""How much a late request takes from the number in hand, nearly: a tenth."""
_NUM_ALONE = 64
"""Requests without company that are remembered."""
_LEAST_TOKENS = 256
"""A prompt of fewer tokens to compute takes about as long as one of so many."""
_FEWEST_ALONE = 8
"""Before so many have been seen, the first guess holds."""
_ACTIVE_S = 2.0
"""A tenant that has asked within this time has its part of the room."""


class Place(NamedTuple):
    """What a request holds while it is in hand."""

    tenant: str
    is_bounded: bool
    was_full: bool
    """Whether about as many were in hand as there may be, when it came."""


class Room:
    """The interactive requests in hand, and how many there may be."""

    def __init__(
        self,
        *,
        max_slowdown: float,
        unhurried_s: float,
        first: int,
        most: int,
        alone_s: float,
        clock: Callable[[], float],
    ) -> None:
        """`max_slowdown` 0: no bound. Below `unhurried_s` nothing is late. The number in hand begins at `first` and is
        never above `most`; `alone_s` is a first guess of what a request takes."""
        self._max_slowdown, self._unhurried_s, self._most, self._clock = max_slowdown, unhurried_s, most, clock
        self._limit = float(first)
        self._alone: deque[tuple[float, float]] = deque(maxlen=_NUM_ALONE)
        """Seconds for each prompt token, and for each token generated."""
        self._guess_s = alone_s
        self._service_s = alone_s
        self._is_shared = False
        self._in_hand: Counter[str] = Counter()
        self._asked_s: dict[str, float] = {}

    @property
    def num_in_hand(self) -> int:
        """Interactive requests entered and not left."""
        return self._in_hand.total()

    @property
    def limit(self) -> int:
        """How many there may be."""
        return max(1, math.floor(self._limit))

    def late_after_s(self, usage: Usage) -> tuple[float, float]:
        """Return from when on the first token and the end of a request of this size are late."""
        first_s = total_s = self._guess_s
        if len(self._alone) >= _FEWEST_ALONE:
            prompt_token_s, new_token_s = map(statistics.median, zip(*self._alone, strict=True))
            first_s = prompt_token_s * _num_computed(usage)
            total_s = first_s + new_token_s * max(1, usage.num_generated_tokens)
        return max(self._unhurried_s, self._max_slowdown * first_s), max(
            self._unhurried_s, self._max_slowdown * total_s
        )

    def retry_after_s(self, tenant: str) -> float | None:
        """Return after how long a request of a tenant should be sent again, since there is no room; None: there is."""
        now_s = self._clock()
        self._asked_s[tenant] = now_s
        if not self._max_slowdown:
            return None
        for other in [other for other, asked_s in self._asked_s.items() if now_s - asked_s > _ACTIVE_S]:
            del self._asked_s[other]
        active = len(self._asked_s.keys() | +self._in_hand)
        share = math.ceil(self.limit / active)
        # Who has little may come in even when others have taken the room that was free before.
        is_full = self.num_in_hand >= self.limit and (active == 1 or active > self.limit)
        if self._in_hand[tenant] < share and not is_full:
            return None
        return max(0.01, self._service_s)

    def enter(self, tenant: str, *, is_bounded: bool) -> Place:
        """Take a request in; `is_bounded`: it is interactive."""
        was_full = self.num_in_hand + 1 >= self.limit
        if is_bounded:
            self._is_shared = bool(self._in_hand.total())
            self._in_hand[tenant] += 1
        return Place(tenant, is_bounded, was_full)

    def leave(self, place: Place, state: FinishState, usage: Usage) -> None:
        """Let a request go, and learn from how long it took."""
        if not place.is_bounded:
            return
        is_alone = self.num_in_hand == 1 and not self._is_shared
        self._in_hand[place.tenant] -= 1
        if not self._in_hand[place.tenant]:
            del self._in_hand[place.tenant]
        if state == "finished":
            self._service_s += 0.1 * (usage.total_s - usage.queue_s - self._service_s)
            if is_alone:
                self._learn_alone(usage)
        if state == "failed":
            return
        first_late_s, total_late_s = self.late_after_s(usage)
        first_s = usage.first_token_s or usage.total_s  # cancelled before any: it waited so long in vain
        if first_s > first_late_s or (state == "finished" and usage.total_s > total_late_s):
            self._limit = max(1.0, self._limit * (1 - _GAIN * (1 - SHARE_LATE)))
        elif place.was_full:
            self._limit = min(float(self._most), self._limit * (1 + _GAIN * SHARE_LATE))

    def _learn_alone(self, usage: Usage) -> None:
        writing_s = usage.total_s - usage.first_token_s
        self._alone.append((usage.first_token_s / _num_computed(usage), writing_s / max(1, usage.num_generated_tokens)))


def _num_computed(usage: Usage) -> int:
    return max(_LEAST_TOKENS, usage.num_prompt_tokens - usage.num_reused_tokens)
