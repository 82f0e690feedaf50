"""A contextual bandit: which of a few arms pays most in a context, learned while it runs.

LinUCB with disjoint models (Li et al., 2010): each arm has a ridge regression of what it paid on the context, and the
arm with the highest upper confidence bound is taken. What was paid long ago counts less, so that arms whose worth
changes are tried again. Knows no replica and no budget.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class LinUcb:
    """Chooses arms by number; `choose` and `learn` are called in turn by one thread."""

    def __init__(self, num_arms: int, width: int, *, exploration: float = 1.0, keep: float = 0.999) -> None:
        """`width` numbers are a context; `keep` is the weight that each step leaves of what was learned before it."""
        self._exploration, self._keep = exploration, keep
        self._ridge = np.eye(width)
        self._squares = np.zeros((num_arms, width, width))
        """Sums of context times context,"""
        self._products = np.zeros((num_arms, width))
        """and of context times reward."""

    def choose(self, context: Sequence[float]) -> int:
        """Return the arm that may pay most; equal ones in order."""
        seen: NDArray[np.float64] = np.asarray(context, np.float64)
        inverse = np.linalg.inv(self._squares + self._ridge)
        means = np.einsum("aij,aj,i->a", inverse, self._products, seen)
        spread = np.sqrt(np.einsum("i,aij,j->a", seen, inverse, seen))
        return int((means + self._exploration * spread).argmax())

    def learn(self, context: Sequence[float], arm: int, reward: float) -> None:
        """Take in what an arm paid."""
        seen = np.asarray(context, np.float64)
        self._squares *= self._keep
        self._products *= self._keep
        self._squares[arm] += np.outer(seen, seen)
        self._products[arm] += reward * seen
