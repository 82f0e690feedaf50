"""A contextual bandit: which of a few arms pays most in a context, learned while it runs.

Discounted Thompson sampling with Gaussian rewards (Qi, Wang and Zhu 2023; discounting as by Raj and Kalyani 2017). Each
arm of each context has a mean of what it paid and the weight behind it; an arm is drawn by how likely it is the best.
What was paid long ago counts less, so that arms whose worth changes are tried again. Rewards count against the running
average of their context: when everything becomes slower, no arm is to blame.

What learning may cost is bounded: an arm that is not held to be the best is only tried when the best one has been taken
`_BEST_FOR_ONE` times since; and another is held to be the best only when it surely is better, by a standard error. The
first arm is the one held to be the best until then.

Knows no budgets and no clock. Deterministic: the same calls give the same arms.
"""

import random
from collections.abc import Hashable
from typing import NamedTuple

_BEST_FOR_ONE = 5
"""The best arm is taken so often for each time that another is tried."""
_KEEP = 0.995
"""What is left of older rewards' weight after each new one: about the last 200 of a context count."""
_FOLLOW = 0.05
"""Weight of the newest reward in the running average."""
_PRIOR_VARIANCE, _PRIOR_WEIGHT = 0.05, 4.0
"""Of rewards, before there is any experience: about 0.2 more or less than usual."""


class Choice(NamedTuple):
    """What was chosen."""

    arm: int
    is_tried: bool
    """Whether another arm is held to be the best, and this one is taken to learn of it."""


class Estimate(NamedTuple):
    """What is known of an arm."""

    mean: float
    """Reward above or below what is usual."""
    error: float
    """Standard error of that."""


class _Context:
    def __init__(self, num_arms: int) -> None:
        self.weights = [0.0] * num_arms
        self.sums = [0.0] * num_arms
        self.squares, self.num_squares = _PRIOR_VARIANCE * _PRIOR_WEIGHT, _PRIOR_WEIGHT
        self.usual: float | None = None
        self.best = 0
        self.num_since_tried = 0

    def estimate(self, arm: int) -> Estimate:
        weight = self.weights[arm] + 1.0  # one more, as if the arm had once paid what is usual
        return Estimate(self.sums[arm] / weight, (self.squares / self.num_squares / weight) ** 0.5)


class Bandit:
    """Chooses arms by number; used by one thread."""

    def __init__(self, num_arms: int, *, seed: int = 0) -> None:
        assert num_arms >= 1, "no arm"
        self._num_arms, self._draw = num_arms, random.Random(seed)
        self._contexts: dict[Hashable, _Context] = {}

    def choose(self, context: Hashable) -> Choice:
        """Return the arm to take now."""
        known = self._known(context)
        drawn = known.best
        if known.num_since_tried >= _BEST_FOR_ONE:
            estimates = [known.estimate(arm) for arm in range(self._num_arms)]
            worths = [self._draw.gauss(estimate.mean, estimate.error) for estimate in estimates]
            drawn = worths.index(max(worths))
        known.num_since_tried = known.num_since_tried + 1 if drawn == known.best else 0
        return Choice(drawn, drawn != known.best)

    def learn(self, context: Hashable, arm: int, reward: float, *, weight: float = 1.0) -> None:
        """Take in what an arm paid; `weight` from 0 to 1 says how much of the reward is due to it."""
        known = self._known(context)
        if known.usual is None:
            known.usual = reward
        above = reward - known.usual
        known.usual += _FOLLOW * weight * above
        expected = known.estimate(arm).mean
        fade = 1 - (1 - _KEEP) * weight
        for one in range(self._num_arms):
            known.weights[one] *= fade
            known.sums[one] *= fade
        known.weights[arm] += weight
        known.sums[arm] += weight * above
        known.squares = fade * known.squares + weight * (above - expected) ** 2
        known.num_squares = fade * known.num_squares + weight
        self._compare(known)

    def best(self, context: Hashable) -> int:
        """Return the arm that is held to be the best."""
        return self._known(context).best

    def estimate(self, context: Hashable, arm: int) -> Estimate:
        """Return what is known of an arm in a context."""
        return self._known(context).estimate(arm)

    def _compare(self, known: _Context) -> None:
        """Hold another arm to be the best if it surely is better."""
        estimates = [known.estimate(arm) for arm in range(self._num_arms)]
        challenger = max(range(self._num_arms), key=lambda arm: estimates[arm].mean)
        theirs, ours = estimates[challenger], estimates[known.best]
        if theirs.mean - ours.mean > (theirs.error**2 + ours.error**2) ** 0.5:
            known.best = challenger

    def _known(self, context: Hashable) -> _Context:
        if (known := self._contexts.get(context)) is None:
            known = self._contexts[context] = _Context(self._num_arms)
        return known
