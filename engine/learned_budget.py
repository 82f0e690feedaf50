"""One budget that is learned: a value in force for a window at a time, chosen by a bandit, in each context by itself.

    value = budget.ask("4 rows")       # at any step
    budget.settle(reward, num_steps)   # at the end of a window: what it paid, and how many steps it had

A value is chosen when it is first asked for in a window, and kept until the window is settled. Knows no clock and not
what rewards mean. Used by one thread; `counts` may be read by others.
"""

import logging
from collections import Counter

from engine.bandit import Bandit

logger = logging.getLogger(__name__)


class LearnedBudget:
    """The values that one budget may have, and what was learned of them."""

    def __init__(self, name: str, values: tuple[float, ...], *, seed: int = 0) -> None:
        """The first of the values stays in force until another one is surely better."""
        self._name, self._values = name, values
        self._bandit = Bandit(len(values), seed=seed)
        self._held: dict[str, int] = {}
        """The arm of each context in this window."""
        self._num_asked: Counter[str] = Counter()
        self.counts: dict[str, int] = {}
        """Windows by `budget/context/value`."""

    def ask(self, context: str) -> float:
        """Return the value for a step of this context."""
        self._num_asked[context] += 1
        if (arm := self._held.get(context)) is None:
            arm = self._held[context] = self._choose(context)
        return self._values[arm]

    def settle(self, reward: float | None, num_steps: int) -> None:
        """End a window: learn what it paid, each context by its share of the steps; None: nothing can be said."""
        if reward is not None:
            for context, num_asked in self._num_asked.items():
                self._learn(context, reward, min(1.0, num_asked / num_steps))
        self._held.clear()
        self._num_asked.clear()

    def _learn(self, context: str, reward: float, weight: float) -> None:
        arm, best = self._held[context], self._bandit.best(context)
        self._bandit.learn(context, arm, reward, weight=weight)
        key = f"{self._name}/{context}/{self._values[arm]:g}"
        self.counts[key] = self.counts.get(key, 0) + 1
        if (now := self._bandit.best(context)) != best:
            was = self._describe(context, best)
            logger.info("%s budget, %s: now %s, which was %s", self._name, context, self._describe(context, now), was)

    def _choose(self, context: str) -> int:
        arm, is_tried = self._bandit.choose(context)
        if logger.isEnabledFor(logging.DEBUG):
            best = self._describe(context, self._bandit.best(context))
            why = f", tried; the best so far is {best}" if is_tried else ", the best so far"
            logger.debug("%s budget, %s: %s%s", self._name, context, self._describe(context, arm), why)
        return arm

    def _describe(self, context: str, arm: int) -> str:
        mean, error = self._bandit.estimate(context, arm)
        return f"{self._values[arm]:g} (pays {mean:+.3f}, give or take {error:.3f})"
