"""Grid search: the setting of a policy that costs least and keeps the service level on the tuning stretch.

First the coarse grid, then a finer one around its best, so that no rule loses to another for want of a setting.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestration.allocator.arena import Arena
from orchestration.allocator.baselines import STATIC, Baseline

_NARROW = 9
"""Values of the finer grid, along the parameter with the most values."""


def tune(
    policy: Baseline,
    arena: Arena,
    attainment: float,
    *,
    stretch: tuple[int, int] | None = None,
    seed: int = 0,
    features: NDArray[np.float32] | None = None,
    shared: Any = None,
) -> tuple[dict[str, float], float, float]:
    """Return (setting, replica-hours, attainment) of the cheapest that keeps the level, or of the closest."""
    stretch = stretch or arena.tuning

    def search(settings: list[dict[str, float]]) -> tuple[dict[str, float], float, float]:
        totals, _ = arena.run(policy, settings, stretch, seed=seed, features=features, shared=shared)
        reached = 1 - totals.missed / totals.windows
        keeps = reached >= attainment
        hours = totals.replica_s / 3600
        best = int(np.where(keeps, hours, np.inf).argmin()) if keeps.any() else int(reached.argmax())
        return settings[best], float(hours[best]), float(reached[best])

    coarse = search(policy.settings())
    if policy is STATIC:
        return coarse
    name = max(policy.grid, key=lambda key: len(policy.grid[key]))
    values = sorted(policy.grid[name])
    step = float(np.diff(values).max())
    least = min(values[0] / 2, coarse[0][name])  # no setting is 0 for lack of a coarser one
    around = np.linspace(max(coarse[0][name] - step, least), coarse[0][name] + step, _NARROW)
    fine = search([coarse[0] | {name: float(value)} for value in around])
    if (fine[2] >= attainment, -fine[1]) > (coarse[2] >= attainment, -coarse[1]):
        return fine
    return coarse


def tune_over(
    policy: Baseline,
    arena: Arena,
    attainment: float,
    seeds: Sequence[int],
    *,
    stretch: tuple[int, int],
    shared: Any = None,
) -> tuple[dict[str, float], float, float]:
    """Do as `tune` on the coarse grid, by means over draws of the traffic."""
    settings = policy.settings()
    first, last = (second // arena.rules.interval_s for second in stretch)
    hours, reached = np.zeros(len(settings)), np.zeros(len(settings))
    for seed in seeds:
        totals, _ = arena.run(
            policy, settings, stretch, seed=seed, features=arena.foreseen(seed)[first:last], shared=shared
        )
        hours += totals.replica_s / 3600 / len(seeds)
        reached += (1 - totals.missed / totals.windows) / len(seeds)
    keeps = reached >= attainment
    best = int(np.where(keeps, hours, np.inf).argmin()) if keeps.any() else int(reached.argmax())
    return settings[best], float(hours[best]), float(reached[best])
