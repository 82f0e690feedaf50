"""The simulator: fleets of replicas under traffic, many at once, in steps of a second.

**State** of a fleet: requests that wait (`waiting`), replicas that serve (`ready`), replicas that start, by the
intervals they still need (`warming`), and what its policy remembers.

**Action**: every `interval_s` a policy sees an `Observation` and names a target, in replicas. `guard` limits it, as the
live controller does; then replicas start (`cold_start_s` until they serve) or drain (`drain_s`). Starting and draining
replicas are paid for.

**Cost**: replica-hours. **Service level**: a window of 60 s is attained if at least 95 % of the requests that came in
it have their first token within `slo_s`; a window without requests is attained.

Waiting inside a fleet is a fluid: arrivals beyond what the replicas sustain wait, first come first served; who would
wait longer than `deadline_s` is dropped, and counts as late. To that comes the wait that chance makes inside a second:
behind another's prompt, an M/G/1 queue on each replica (Pollaczek-Khinchine), and for a slot, an M/M/slots queue
(Sakasegawa's approximation); both have nearly exponential tails. A prompt takes longer while others decode (`Load`).
`request_simulator.py` follows every single request instead, and is the oracle of this file.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from orchestration.allocator.service import Service

WINDOW_S = 60
LATE_SHARE = 0.05
"""A window with a larger share of late requests is missed: the SLO is about p95."""
EDGES_S = np.geomspace(0.005, 60.0, 45).astype(np.float32)
"""Times to the first token at which the distribution is kept."""
_POINTS = (0.25, 0.75)
"""Where in a second its arrivals are taken to come."""
_MAX_LOAD = 0.6
"""Above this load what comes on top is the backlog's, which has the counts of single seconds: the formulas of steady
queues have a pole at 1, and no burst lasts long enough for what they say there."""
_ROUNDS = 5
"""More change nothing any more."""


class FleetRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for a fleet whatever its policy."""

    slo_s: float = 0.3
    """Time to the first token that 95 % of the requests of a window must keep."""
    cold_start_s: int = 40
    interval_s: int = 10
    """Seconds between decisions."""
    min_replicas: int = 1
    max_replicas: int = 24
    max_step_up: int = 4
    """Replicas that one decision may add."""
    max_step_down: int = 1
    deadline_s: float = 5.0
    """Requests that would wait longer are dropped."""
    drain_s: int = 10
    """What a replica is still paid for after it was given up."""
    failures_per_day: float = 0.2
    """Of one replica; another one starts in its place."""

    @property
    def warming_intervals(self) -> int:
        return -(-self.cold_start_s // self.interval_s)

    @property
    def window_intervals(self) -> int:
        return max(WINDOW_S // self.interval_s, 1)


class Observation(NamedTuple):
    """What a policy sees at a decision: the last interval as a live controller can measure it; [fleets] each."""

    rate: Array
    """Arrivals per second in the last interval."""
    throughput: Array
    """Requests per second that were served."""
    waiting: Array
    """Requests that wait now."""
    ready: Array
    warming: Array
    late_share: Array
    """Of the last interval's requests."""
    capacity: Array
    """Requests per second that one replica sustains."""
    features: Array
    """[fleets, features] what a forecaster knows, from arrivals so far (`forecaster.py`)."""


Memory = Any
Policy = Callable[[Any, Memory, Observation], tuple[Array, Memory]]
"""(parameters, memory, observation) -> (target in replicas, memory)."""


class Totals(NamedTuple):
    """Sums over a run, [fleets] each."""

    replica_s: Any
    requests: Any
    late: Any
    dropped: Any
    windows: Any
    missed: Any
    changes: Any
    sum_s: Any
    """Of all times to the first token."""
    over: Any
    """[fleets, EDGES_S] requests whose first token took longer; zeros unless `has_histogram`."""


class Fleet(NamedTuple):
    """State of fleets between intervals, without their policies; [fleets] each."""

    number: Array
    """Intervals so far; a scalar."""
    waiting: Array
    ready: Array
    warming: Array
    """[fleets, intervals left] replicas that start."""
    window_requests: Array
    window_late: Array
    seen: Observation


class Traffic(NamedTuple):
    """What happens to fleets from outside, at each interval."""

    arrivals: Array
    """[intervals, interval_s, fleets] requests in each second."""
    failing: Array
    """[intervals, fleets] uniform in 0..1; a replica fails where it is below the chance that one of them does."""
    features: Array
    """[intervals, fleets, features] what the forecaster knows before the interval."""


class Load(NamedTuple):
    """How busy a replica is at a rate, in the mean."""

    prompt_s: Any
    """From a prompt's turn to its first token."""
    prompt_load: Any
    """Share of time in which a prompt is computed."""
    rows: Any
    """Sequences that decode,"""
    busy: Any
    """and the chance that there is any."""
    step_s: Any
    """A step without a chunk, beside which a prompt has to stand."""


def find_load(service: Service, rate: Array) -> Load:
    """Return how busy a replica is that gets `rate` requests per second.

    Rows make prompts slow, since those stand beside them in small chunks, and prompts make rows slow; so it is found by
    going round a few times.
    """
    alone_s = service.prefill_s + service.base_s * service.chunks
    rows = busy = jnp.zeros_like(rate)
    for _ in range(_ROUNDS):
        step_s = service.base_s + service.row_s * jnp.maximum(rows, 1)
        beside_s = service.prefill_s + step_s * service.beside_chunks
        prompt_s = alone_s + busy * jnp.maximum(beside_s - alone_s, 0)
        prompt_load = jnp.minimum(rate * prompt_s, _MAX_LOAD)
        chunk_s = service.prefill_s / jnp.maximum(service.beside_chunks, 1)
        rows = jnp.minimum(rate * service.decode_tokens * (step_s + chunk_s * prompt_load), service.num_slots)
        busy = 1 - jnp.exp(-rows)
    return Load(prompt_s, prompt_load, rows, busy, step_s)


def wait_tail(service: Service, load: Load) -> tuple[Array, Array]:
    """Return (chance to wait, mean wait of those who do in s)."""
    prompt_wait = load.prompt_s * (1 + service.prompt_scv) / 2 / (1 - load.prompt_load)
    full = jnp.minimum(load.rows / service.num_slots, _MAX_LOAD)
    slot_chance = full ** jnp.sqrt(2 * (service.num_slots + 1))
    slot_wait = 1 / (service.capacity * (1 - full))
    chance = 1 - (1 - load.prompt_load) * (1 - slot_chance)
    mean = (load.prompt_load * prompt_wait + slot_chance * slot_wait) / jnp.maximum(chance, 1e-9)
    return chance, mean


def unloaded_s(service: Service, load: Load) -> Array:
    """Return the mean time to the first token of a request that does not wait; it comes in the middle of a step."""
    unloaded: Array = service.overhead_s + load.prompt_s + load.busy * load.step_s / 2
    return unloaded


def tail(left: Array, own: Array, chance: Array, wait: Array) -> Array:
    """Return P(own + wait > left): `own` is the mean of an exponential, `wait` of another that only some have.

    The own part is what prompts differ by; the sum of both is hypoexponential.
    """
    wait = jnp.where(jnp.abs(wait - own) < 1e-3 * own, own * 1.002, wait)
    positive = jnp.maximum(left, 0)
    lone, waited = jnp.exp(-positive / own), jnp.exp(-positive / wait)
    both = (own * lone - wait * waited) / (own - wait)
    return jnp.where(left > 0, jnp.clip((1 - chance) * lone + chance * both, 0, 1), 1.0)


def guard(rules: FleetRules, target: Any, ready: Any, warming: Any) -> Any:
    """Limit a target: between least and most, a bounded step, and no step down while replicas start."""
    total = ready + warming
    target = jnp.clip(jnp.round(target), total - rules.max_step_down, total + rules.max_step_up)
    target = jnp.clip(target, rules.min_replicas, rules.max_replicas)
    return jnp.where((warming > 0) & (target < total), total, target)


def start(rules: FleetRules, service: Service, traffic: Traffic, ready: Array) -> Fleet:
    """Return fleets of `ready` [fleets] replicas before the first interval, whose arrivals they are told."""
    zeros = jnp.zeros(ready.shape, jnp.float32)
    ready = ready.astype(jnp.float32)
    first = traffic.arrivals[0].mean(0)
    seen = Observation(first, first, zeros, ready, zeros, zeros, zeros + service.capacity, traffic.features[0])
    warming = jnp.zeros((len(ready), rules.warming_intervals))
    return Fleet(jnp.int32(0), zeros, ready, warming, zeros, zeros, seen)


def advance(
    rules: FleetRules, service: Service, fleet: Fleet, target: Array, traffic: Traffic, *, num_edges: int = 0
) -> tuple[Fleet, Totals]:
    """Let fleets go through one interval, whose `traffic` has no leading axis, towards guarded targets.

    Returns what they are then (features are those of the interval), and what the interval adds to the totals.
    """
    total = fleet.ready + fleet.warming.sum(1)
    started = jnp.maximum(target - total, 0)
    stopped = jnp.minimum(jnp.maximum(total - target, 0), fleet.ready)
    # Those started at the last place serve after `warming_intervals` intervals.
    warming = jnp.concatenate([fleet.warming[:, 1:], started[:, None]], axis=1)
    failed = traffic.failing < fleet.ready * rules.failures_per_day * rules.interval_s / 86400
    ready = jnp.maximum(fleet.ready - stopped - failed, 0)
    cost = (ready + warming.sum(1)) * rules.interval_s + stopped * rules.drain_s
    waiting, done, late, dropped, sum_s, over = _seconds(
        rules, service, fleet.waiting, ready, traffic.arrivals, num_edges
    )
    count = traffic.arrivals.sum(0)
    window_requests, window_late = fleet.window_requests + count, fleet.window_late + late
    is_end = (fleet.number + 1) % rules.window_intervals == 0
    totals = Totals(
        replica_s=cost,
        requests=count,
        late=late,
        dropped=dropped,
        windows=jnp.broadcast_to(is_end, cost.shape).astype(jnp.float32),
        missed=is_end * (window_late > LATE_SHARE * window_requests + 1e-6).astype(jnp.float32),
        changes=(target != total).astype(jnp.float32),
        sum_s=sum_s,
        over=over,
    )
    ready = ready + warming[:, 0]
    warming = warming.at[:, 0].set(0)
    seen = Observation(
        rate=count / rules.interval_s,
        throughput=done / rules.interval_s,
        waiting=waiting,
        ready=ready,
        warming=warming.sum(1),
        late_share=late / jnp.maximum(count, 1),
        capacity=jnp.broadcast_to(service.capacity, cost.shape),
        features=traffic.features,
    )
    keep = ~is_end
    fleet = Fleet(fleet.number + 1, waiting, ready, warming, window_requests * keep, window_late * keep, seen)
    return fleet, totals


@partial(jax.jit, static_argnames=("rules", "policy", "has_histogram"))
def simulate(
    rules: FleetRules,
    policy: Policy,
    parameters: Any,
    memory: Memory,
    service: Service,
    traffic: Traffic,
    ready: Array,
    *,
    has_histogram: bool = False,
) -> tuple[Totals, tuple[Array, Observation]]:
    """Run fleets; return totals, and by interval the guarded targets and what was seen.

    `ready` [fleets] replicas at the start; `memory` is the policy's, with fleets leading. The service's numbers are
    scalars or [fleets].
    """
    service = Service(*(jnp.broadcast_to(jnp.asarray(value, jnp.float32), ready.shape) for value in service))
    num_edges = len(EDGES_S) if has_histogram else 0
    zeros = jnp.zeros(ready.shape, jnp.float32)
    totals = Totals(*[zeros] * 8, over=jnp.zeros((len(ready), num_edges)))

    def interval(
        carry: tuple[Fleet, Memory, Totals], inputs: Traffic
    ) -> tuple[tuple[Fleet, Memory, Totals], tuple[Array, Observation]]:
        fleet, memory, totals = carry
        seen = fleet.seen._replace(features=inputs.features)
        target, memory = policy(parameters, memory, seen)
        target = guard(rules, target, seen.ready, seen.warming)
        fleet, added = advance(rules, service, fleet, target, inputs, num_edges=num_edges)
        totals = Totals(*(old + new for old, new in zip(totals, added, strict=True)))
        return (fleet, memory, totals), (target, seen._replace(features=seen.features[:, :0]))

    (_, _, totals), outputs = lax.scan(interval, (start(rules, service, traffic, ready), memory, totals), traffic)
    return totals, outputs


def _seconds(
    rules: FleetRules, service: Service, waiting: Array, ready: Array, arrivals: Array, num_edges: int
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Run the seconds of one interval; return waiting, served, late, dropped, sum of times, requests over each edge.

    Only the backlog goes from second to second; all else is computed for all seconds, [interval_s, fleets], at once.
    """
    capacity = jnp.maximum(ready, 1e-3) * service.capacity
    before, after, excess = [], [], []
    for count in arrivals:
        before.append(waiting)
        left = jnp.maximum(waiting + count - capacity, 0)
        waiting = jnp.minimum(left, rules.deadline_s * capacity)
        after.append(waiting)
        excess.append(left - waiting)
    begins, ends, dropped = (jnp.stack(values) for values in (before, after, excess))
    served = (begins + arrivals - ends - dropped).sum(0)
    begins, ends = begins / capacity, ends / capacity
    kept = jnp.maximum(arrivals - dropped, 0)
    # The rate that the mean request sees. Without the "- 1", which takes the request itself out of its second, chance
    # would count twice: for a Poisson process this is its rate (mean crowding, Lloyd 1967).
    seen = (arrivals * jnp.maximum(arrivals - 1, 0)).sum(0) / jnp.maximum(arrivals.sum(0), 1)
    rate = jnp.minimum(seen / jnp.maximum(ready, 1e-3), service.capacity)[None]
    load = find_load(service, rate)
    chance, mean = wait_tail(service, load)
    unloaded = unloaded_s(service, load)
    own = jnp.maximum(jnp.minimum(jnp.sqrt(service.prompt_scv), 1) * load.prompt_s, 1e-5)
    late = dropped
    over = jnp.zeros((waiting.shape[0], num_edges))
    for point in _POINTS:
        behind = unloaded - own + begins + (ends - begins) * point
        late = late + kept * tail(rules.slo_s - behind, own, chance, mean) / len(_POINTS)
        if num_edges:
            beyond = EDGES_S - behind[:, :, None]
            share = tail(beyond, own[:, :, None], chance[:, :, None], mean[:, :, None])
            over = over + (kept[:, :, None] * share).sum(0) / len(_POINTS)
    sum_s = kept * (unloaded + (begins + ends) / 2 + chance * mean)
    return waiting, served, late.sum(0), dropped.sum(0), sum_s.sum(0), over


def percentile_s(totals: Totals, percent: float) -> NDArray[np.float64]:
    """Return a percentile of the time to the first token in s, [fleets], from a run with a histogram."""
    over = np.asarray(totals.over, np.float64)
    served = np.asarray(totals.requests - totals.dropped, np.float64)[:, None]
    below = 1 - over / np.maximum(served, 1e-9)
    return np.array([np.interp(percent / 100, np.maximum.accumulate(row), EDGES_S) for row in below])
