"""What both simulations foretell of one replica under requests that came: mean and 95th percentile to the first token.

From when each came and how large it was, never from how long it took. Knows no server.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from orchestration.allocator.baselines import STATIC
from orchestration.allocator.request_simulator import follow
from orchestration.allocator.service import StepTimes, Workload, describe_service
from orchestration.allocator.simulator import FleetRules, Traffic, percentile_s, simulate


class Asked(NamedTuple):
    """Requests, [requests] each, in order of time."""

    times_s: NDArray[np.float64]
    prompts: NDArray[np.float64]
    """Tokens that must be computed."""
    outputs: NDArray[np.float64]

    @property
    def workload(self) -> Workload:
        """The mean of them."""
        mean = float(self.prompts.mean())
        return Workload(
            prompt_tokens=mean,
            prompt_cv=float(self.prompts.std()) / mean,
            output_tokens=float(self.outputs.mean()),
            cancelled_share=0.0,
            reuse_share=0.0,
        )


class Foretold(NamedTuple):
    """Seconds to the first token."""

    mean_s: float
    p95_s: float


def foretell_by_requests(asked: Asked, steps: StepTimes) -> Foretold:
    """Follow every request."""
    first_s = follow(asked.times_s, asked.prompts, asked.outputs, steps).first_s
    return Foretold(float(first_s.mean()), float(np.percentile(first_s, 95)))


def foretell_by_fluid(asked: Asked, steps: StepTimes) -> Foretold:
    """Let the simulator of fleets see no more than how many came in each second, and the mean request."""
    rules = FleetRules(failures_per_day=0, deadline_s=1e4)
    num_intervals = int(asked.times_s[-1]) // rules.interval_s + 1
    counts = np.bincount(asked.times_s.astype(int), minlength=num_intervals * rules.interval_s)
    traffic = Traffic(
        arrivals=jnp.asarray(counts.reshape(num_intervals, rules.interval_s, 1), jnp.float32),
        failing=jnp.ones((num_intervals, 1)),
        features=jnp.zeros((num_intervals, 1, 1)),
    )
    ready = jnp.ones(1)
    service = describe_service(steps, asked.workload)
    totals, _ = simulate(rules, STATIC.decide, {"replicas": ready}, ready, service, traffic, ready, has_histogram=True)
    return Foretold(float(totals.sum_s[0] / totals.requests[0]), float(percentile_s(totals, 95)[0]))
