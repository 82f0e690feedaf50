"""How much of the work ahead may be wasted: a constant, or what was found to make people wait least.

What is done ahead makes later requests sooner, which no engine sees, since those never reach it. So this budget is
judged here, by how long requests wait for their first text, answered ahead or not, and those that were given up before
any as well. `server/prefetch.py` multiplies the share of tokens that it may waste by the factor that is in force.

A factor is kept for a window of about a second; what it paid is how short the mean wait was, as a logarithm. Its
context is how many requests came lately. Used from the event loop's thread only.
"""

import math
from collections.abc import Callable

from engine.learned_budget import LearnedBudget
from engine.types import BudgetMode

FACTORS = (1.0, 0.5, 1.75)
"""As configured, and what is tried: half of it, and nearly twice."""
_WINDOW_S, _WINDOW_WAITS = 1.0, 8
"""A window has at least so many seconds, and so many requests."""
_LEAST_S = 1e-3
"""Nobody tells shorter waits apart."""
_RATES = (4.0, 16.0)
"""Requests a second below which one person types, and a few."""


class PrefetchBudget:
    """The factor in force."""

    def __init__(self, mode: BudgetMode, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._factors = LearnedBudget("prefetch", FACTORS if mode == "learned" else FACTORS[:1])
        self._is_learned = mode == "learned"
        self._began_s: float | None = None
        self._sum_s, self._num_waits, self._num_asked = 0.0, 0, 0
        self._rate = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Windows by `budget/context/value`; empty while nothing is learned."""
        return self._factors.counts

    def factor(self) -> float:
        """Return by how much the share that may be wasted is multiplied now."""
        if not self._is_learned:
            return FACTORS[0]
        self._num_asked += 1
        return self._factors.ask(self._context())

    def note_wait(self, seconds: float) -> None:
        """A request got its first text, or was given up, after so long."""
        if not self._is_learned:
            return
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        self._sum_s += seconds
        self._num_waits += 1
        passed_s = now_s - self._began_s
        if passed_s < _WINDOW_S or self._num_waits < _WINDOW_WAITS:
            return
        self._factors.settle(-math.log(_LEAST_S + self._sum_s / self._num_waits), max(1, self._num_asked))
        self._rate = self._num_waits / passed_s
        self._began_s, self._sum_s, self._num_waits, self._num_asked = now_s, 0.0, 0, 0

    def _context(self) -> str:
        few, some = _RATES
        return "one types" if self._rate < few else "a few type" if self._rate < some else "many type"
