"""The rules that a learned policy has to beat. Each is a pure function from what is seen to a target, in replicas.

All take parameters with one value per fleet, so that a grid of settings runs as one batch of fleets, and all keep the
highest of their last targets for `hold` intervals before they go down (Kubernetes calls it the stabilisation window).
Knows nothing of how the fleet is simulated or run.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgspec
from jax import Array

from orchestration.allocator.simulator import Memory, Observation, Policy

_MAX_HOLD = 60
_MAX_SERVERS = 32


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: how it decides, what it remembers, and which settings are worth trying."""

    name: str
    decide: Policy
    start: Callable[[Array], Memory]
    """Memory of fleets that begin with so many replicas."""
    grid: dict[str, tuple[float, ...]]

    def settings(self) -> list[dict[str, float]]:
        """Return every combination of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


class Held(NamedTuple):
    """Targets of the last intervals, the newest at the end."""

    recent: Array


class Smoothed(NamedTuple):
    """An exponentially smoothed rate, its trend per interval, and targets of the last intervals."""

    rate: Array
    trend: Array
    recent: Array


def hold(recent: Array, target: Array, intervals: Array) -> tuple[Array, Array]:
    """Return the highest target of the last `intervals` (and now), and the new memory of targets."""
    recent = jnp.concatenate([recent[:, 1:], target[:, None]], axis=1)
    age = jnp.arange(recent.shape[1] - 1, -1, -1)
    return jnp.where(age <= intervals[:, None], recent, 0).max(1), recent


def _start_held(ready: Array) -> Held:
    return Held(jnp.tile(ready[:, None].astype(jnp.float32), (1, _MAX_HOLD + 1)))


def _start_smoothed(ready: Array) -> Smoothed:
    return Smoothed(jnp.full(ready.shape, -1.0), jnp.zeros(ready.shape), _start_held(ready).recent)


def decide_static(parameters: Any, memory: Memory, seen: Observation) -> tuple[Array, Memory]:
    """Keep one size."""
    return jnp.broadcast_to(parameters["replicas"], seen.rate.shape), memory


def decide_utilisation(parameters: Any, memory: Held, seen: Observation) -> tuple[Array, Held]:
    """Kubernetes' horizontal autoscaler: sizes in proportion to utilisation over target, with its 10 % tolerance."""
    ready = jnp.maximum(seen.ready, 1)
    ratio = (seen.throughput + seen.waiting / 10) / (ready * seen.capacity) / parameters["utilisation"]
    wanted = jnp.where(jnp.abs(ratio - 1) <= 0.1, seen.ready + seen.warming, jnp.ceil(ready * ratio - 1e-4))
    target, recent = hold(memory.recent, wanted, parameters["hold"])
    return target, Held(recent)


def decide_queue(parameters: Any, memory: Held, seen: Observation) -> tuple[Array, Held]:
    """KEDA's queue rule: one replica for so many requests that run or wait; `seconds` of arrivals are in flight."""
    in_flight = seen.waiting + seen.throughput * parameters["seconds"]
    target, recent = hold(memory.recent, jnp.ceil(in_flight / parameters["per_replica"]), parameters["hold"])
    return target, Held(recent)


def servers_for(rate: Array, capacity: Array, tail: Array, patience_s: Array) -> Array:
    """Return the least servers of an M/M/c queue in which at most a share `tail` waits longer than `patience_s`.

    P(wait > t) = C(c, a) exp(-(c mu - lambda) t), C from Erlang's B by its recursion.
    """
    offered = jnp.maximum(rate, 0) / capacity
    blocked = jnp.ones_like(offered)
    needed = jnp.full_like(offered, float(_MAX_SERVERS))
    for servers in range(1, _MAX_SERVERS + 1):
        blocked = offered * blocked / (servers + offered * blocked)
        load = offered / servers
        delayed = blocked / jnp.maximum(1 - load * (1 - blocked), 1e-9)
        beyond = delayed * jnp.exp(-(servers * capacity - rate) * patience_s)
        fits = (load < 1) & (beyond <= tail)
        needed = jnp.where(fits & (needed > servers), float(servers), needed)
    return needed


def smooth(memory: Smoothed, rate: Array, keep: Array, keep_trend: Array | float = 1.0) -> tuple[Array, Array]:
    """Return Holt's level and trend with one more interval; the first rate is the first level."""
    is_first = memory.rate < 0
    expected = memory.rate + memory.trend
    level = jnp.where(is_first, rate, keep * expected + (1 - keep) * rate)
    trend = jnp.where(is_first, 0.0, keep_trend * memory.trend + (1 - keep_trend) * (level - memory.rate))
    return level, trend


def decide_queueing(parameters: Any, memory: Smoothed, seen: Observation) -> tuple[Array, Smoothed]:
    """M/M/c sizing of the smoothed rate, and proportional control on the throughput that is missing."""
    level, _ = smooth(memory, seen.rate, parameters["keep"])
    servers = servers_for(level * (1 + parameters["margin"]), seen.capacity, jnp.float32(0.05), jnp.float32(0.1))
    missing = jnp.maximum(seen.rate - seen.throughput, 0) + seen.waiting / 10
    wanted = jnp.round(servers + parameters["gain"] * missing / seen.capacity)
    target, recent = hold(memory.recent, wanted, parameters["hold"])
    return target, Smoothed(level, memory.trend, recent)


def decide_predictive(parameters: Any, memory: Smoothed, seen: Observation) -> tuple[Array, Smoothed]:
    """M/M/c sizing of the rate that Holt's linear trend foretells for the end of a cold start."""
    level, trend = smooth(memory, seen.rate, parameters["keep"], 0.98)
    ahead = level + trend * parameters["ahead"]
    servers = servers_for(ahead * (1 + parameters["margin"]), seen.capacity, jnp.float32(0.05), jnp.float32(0.1))
    wanted = servers + jnp.round(seen.waiting / 10 / seen.capacity)
    target, recent = hold(memory.recent, wanted, parameters["hold"])
    return target, Smoothed(level, trend, recent)


STATIC = Baseline(
    name="static",
    decide=decide_static,
    start=_start_held,
    grid={"replicas": tuple(float(n) for n in range(1, 17))},
)
QUEUEING = Baseline(
    name="mmc_proportional",
    decide=decide_queueing,
    start=_start_smoothed,
    grid={
        "keep": (0.8, 0.9),
        "margin": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.2),
        "gain": (0.0, 1.0),
        "hold": (0.0, 3.0, 12.0),
    },
)
BASELINES = (
    STATIC,
    Baseline(
        name="hpa_utilisation",
        decide=decide_utilisation,
        start=_start_held,
        grid={
            "utilisation": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
            "hold": (0.0, 1.0, 3.0, 6.0, 12.0, 30.0),
        },
    ),
    Baseline(
        name="keda_queue",
        decide=decide_queue,
        start=_start_held,
        grid={
            "per_replica": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0),
            "seconds": (0.3,),
            "hold": (0.0, 1.0, 3.0, 12.0, 30.0),
        },
    ),
    QUEUEING,
    Baseline(
        name="predictive",
        decide=decide_predictive,
        start=_start_smoothed,
        grid={
            "keep": (0.8, 0.9),
            "margin": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.2),
            "ahead": (5.0, 10.0),
            "hold": (0.0, 3.0, 12.0),
        },
    ),
)
