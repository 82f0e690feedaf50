"""The oracle: sizes a fleet knowing every arrival that will come. No policy can do that; it shows what is left to gain.

What each window needs is found by running every static size on the same arrivals. The plan starts replicas a cold start
ahead, gives up the share of windows that may be missed where that saves most, and closes dips that are not worth it.
Which of these plans is best is decided by running them, on the very stretch that is reported.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestration.allocator.arena import Arena
from orchestration.allocator.baselines import STATIC, Baseline
from orchestration.allocator.simulator import LATE_SHARE, Memory, Observation


def _decide_planned(parameters: Any, memory: Memory, seen: Observation) -> tuple[Any, Memory]:
    del parameters
    return seen.features[:, 0], memory


PLANNED = Baseline(name="oracle", decide=_decide_planned, start=lambda ready: ready, grid={"none": (0.0,)})


def needed_replicas(arena: Arena, stretch: tuple[int, int], *, seed: int) -> NDArray[np.int64]:
    """Return the least static size that attains each window of the stretch, [windows]."""
    sizes = list(range(1, arena.rules.max_replicas + 1))
    settings = [{"replicas": float(size)} for size in sizes]
    _, (_, seen) = arena.run(STATIC, settings, stretch, seed=seed)
    # What was seen before an interval tells of the interval before it; the last window is taken as the one before.
    length = arena.rules.window_intervals
    rate, late = np.asarray(seen.rate)[1:], np.asarray(seen.late_share * seen.rate)[1:]
    rate, late = (np.concatenate([part, part[-1:]]).reshape(-1, length, len(sizes)).sum(1) for part in (rate, late))
    missed = late > LATE_SHARE * rate + 1e-6
    return np.where(missed.all(1), len(sizes), (~missed).argmax(1) + 1)


def plan(
    needed: NDArray[np.int64], *, spared: int, longest_dip: int, window_intervals: int, lead: int
) -> NDArray[np.float32]:
    """Return targets by interval from needs by window; `spared` are given up, dips up to `longest_dip` closed."""
    needed = needed.copy()
    for _ in range(spared):
        around = np.maximum(np.roll(needed, 1), np.roll(needed, -1))
        place = int((needed - around).argmax())
        if needed[place] <= around[place]:
            break
        needed[place] = around[place]
    for length in range(1, longest_dip + 1):
        for place in range(1, len(needed) - length):
            edge = min(needed[place - 1], needed[place + length])
            inner = needed[place : place + length]
            if (inner < edge).all():
                needed[place : place + length] = edge
    by_interval = np.repeat(needed, window_intervals).astype(np.float32)
    ahead = np.stack([np.concatenate([by_interval[k:], np.full(k, by_interval[-1])]) for k in range(lead + 1)])
    targets: NDArray[np.float32] = ahead.max(0)
    return targets


def run_oracle(
    arena: Arena, stretch: tuple[int, int], attainment: float, *, seed: int
) -> tuple[NDArray[np.float32], float]:
    """Return the cheapest plan found that attains the share of windows, and its replica-hours."""
    needed = needed_replicas(arena, stretch, seed=seed)
    may_miss = int(len(needed) * (1 - attainment))
    rules = arena.rules
    plans = [
        plan(
            needed,
            spared=round(may_miss * share),
            longest_dip=dip,
            window_intervals=rules.window_intervals,
            lead=rules.warming_intervals + 1,
        )
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        for dip in (0, 1, 2, 4)
    ]
    features = np.stack(plans, axis=1)[:, :, None]
    totals, _ = arena.run(PLANNED, [{"none": 0.0}] * len(plans), stretch, seed=seed, features=features)
    hours = totals.replica_s / 3600
    reached = 1 - totals.missed / totals.windows
    keeps = reached >= attainment
    best = int(np.where(keeps, hours, np.inf).argmin()) if keeps.any() else int(reached.argmax())
    return plans[best], float(hours[best])
