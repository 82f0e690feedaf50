import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from orchestration.allocator.arena import Arena
from orchestration.allocator.gym_environment import FleetEnv
from orchestration.allocator.policy import STATE_LAYOUT
from orchestration.allocator.service import StepTimes, Workload
from orchestration.allocator.simulator import FleetRules
from orchestration.allocator.traces import Trace

BASE = {"keep": 0.8, "margin": 0.2, "gain": 0.0, "hold": 3.0}


@pytest.fixture(scope="module")
def environment() -> FleetEnv:
    rates = 100 + 60 * np.sin(np.arange(60) / 10)
    trace = Trace(window_s=60.0, rates=rates, dispersion=np.ones(60), is_recorded=False)
    arena = Arena(trace, steps=StepTimes(), workload=Workload(), rules=FleetRules())
    return FleetEnv(arena, base=BASE, episode=30)


def test_gymnasiums_own_checks_pass(environment: FleetEnv) -> None:
    check_env(environment, skip_render_check=True)


def test_going_down_costs_less_and_going_up_is_late_less(environment: FleetEnv) -> None:
    sums = []
    for action in (0, 2):
        environment.reset(seed=3)
        seen = [environment.step(np.int64(action)) for _ in range(30)]
        assert [one[3] for one in seen] == [False] * 29 + [True]
        sums.append([sum(one[4][name] for one in seen) for name in ("replica_s", "late", "requests")])
    (low_cost, low_late, low_requests), (high_cost, high_late, high_requests) = sums
    assert low_cost < high_cost
    assert low_late > high_late
    assert low_requests == high_requests


def test_an_observation_tells_what_the_baseline_wants(environment: FleetEnv) -> None:
    state, info = environment.reset(seed=1)
    by_name = dict(zip(STATE_LAYOUT, state, strict=True))
    assert by_name["base"] >= 1
    assert by_name["total_over_base"] == info["replicas"] - by_name["base"]
