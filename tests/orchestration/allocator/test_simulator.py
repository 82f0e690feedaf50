import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from orchestration.allocator.baselines import STATIC
from orchestration.allocator.service import StepTimes, Workload, describe_service
from orchestration.allocator.simulator import (
    FleetRules,
    Memory,
    Observation,
    Totals,
    Traffic,
    guard,
    simulate,
)

STEPS, WORKLOAD = StepTimes(), Workload(cancelled_share=0)
SERVICE = describe_service(STEPS, WORKLOAD)
RULES = FleetRules(failures_per_day=0, deadline_s=1e4)


def make_traffic(counts: np.ndarray) -> Traffic:
    """`counts` [seconds]: traffic of one fleet."""
    arrivals = jnp.asarray(counts.reshape(-1, RULES.interval_s, 1), jnp.float32)
    return Traffic(arrivals, jnp.ones((len(arrivals), 1)), jnp.zeros((len(arrivals), 1, 1)))


def run_static(counts: np.ndarray, replicas: float, rules: FleetRules = RULES) -> Totals:
    ready = jnp.full(1, replicas)
    totals, _ = simulate(
        rules, STATIC.decide, {"replicas": ready}, ready, SERVICE, make_traffic(counts), ready, has_histogram=True
    )
    return totals


def test_a_replica_serves_a_cold_start_after_the_decision_and_is_paid_from_it() -> None:
    rules = FleetRules(failures_per_day=0, cold_start_s=40)
    counts = np.zeros(120)

    def policy(parameters: float, memory: Memory, seen: Observation) -> tuple[jnp.ndarray, Memory]:
        return jnp.full(seen.rate.shape, 2.0), memory

    ready = jnp.ones(1)
    totals, (targets, seen) = simulate(rules, policy, 0.0, ready, SERVICE, make_traffic(counts), ready)
    assert targets[:, 0].tolist() == [2.0] * 12
    assert seen.ready[:, 0].tolist() == [1.0] * 4 + [2.0] * 8
    assert seen.warming[:, 0].tolist() == [0.0] + [1.0] * 3 + [0.0] * 8
    assert float(totals.replica_s[0]) == 2 * 120


def test_what_is_not_served_waits_and_what_waits_too_long_is_dropped() -> None:
    counts = np.full(600, 3 * SERVICE.capacity)
    waits = run_static(counts, 1.0)
    assert float(waits.dropped[0]) == 0
    assert float(waits.missed[0]) == float(waits.windows[0]) == 10
    drops = run_static(counts, 1.0, FleetRules(failures_per_day=0, deadline_s=5))
    assert float(drops.dropped[0] / drops.requests[0]) == pytest.approx(2 / 3, abs=0.02)


def test_a_failed_replica_is_replaced() -> None:
    rules = FleetRules(failures_per_day=8640 * 0.4)
    traffic = make_traffic(np.full(120, 1.0))
    traffic = traffic._replace(failing=traffic.failing.at[2].set(0.0))
    ready = jnp.full(1, 2.0)
    _, (_, seen) = simulate(rules, STATIC.decide, {"replicas": ready}, ready, SERVICE, traffic, ready)
    assert seen.ready[:, 0].tolist() == [2.0] * 3 + [1.0] * 4 + [2.0] * 5


@pytest.mark.parametrize(
    ("target", "ready", "warming", "expected"),
    [(9, 2, 0, 6), (1, 5, 0, 4), (1, 5, 1, 6), (0, 1, 0, 1), (99, 23, 0, 24), (3.4, 3, 0, 3)],
)
def test_targets_are_guarded(target: float, ready: int, warming: int, expected: int) -> None:
    assert int(guard(FleetRules(), jnp.float32(target), ready, warming)) == expected


def test_fleets_run_side_by_side_as_they_run_alone() -> None:
    counts = np.random.default_rng(0).poisson(40, 1200)
    alone = [run_static(counts, size) for size in (2.0, 3.0)]
    ready = jnp.array([2.0, 3.0])
    both = make_traffic(counts)
    both = Traffic(*(jnp.repeat(value, 2, axis=-1 if value.ndim != 3 or value.shape[1] != 1 else 1) for value in both))
    totals, _ = simulate(RULES, STATIC.decide, {"replicas": ready}, ready, SERVICE, both, ready, has_histogram=True)
    for number, one in enumerate(alone):
        for own, other in zip(one, totals, strict=True):
            np.testing.assert_allclose(own[0], other[number], rtol=1e-4)


def test_capacity_falls_with_work() -> None:
    longer = describe_service(STEPS, msgspec.structs.replace(WORKLOAD, output_tokens=50))
    assert longer.capacity < SERVICE.capacity
