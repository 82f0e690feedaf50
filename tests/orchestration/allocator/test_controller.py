import shutil
from pathlib import Path

import jax.numpy as jnp
import msgspec
import pytest

from orchestration.allocator import checkpoint
from orchestration.allocator.config import AllocatorConfig
from orchestration.allocator.controller import Controller, Decision, LiveState
from orchestration.allocator.policy import Weights
from orchestration.allocator.simulator import FleetRules

BASE = {"keep": 0.0, "margin": 0.2, "gain": 0.0, "hold": 0.0}
CALM = LiveState(rate=40, throughput=40, waiting=0, ready=4, warming=0, late_share=0.0)
DRIVING = AllocatorConfig(mode="learned", cooldown_intervals=0, max_distance=1e9, **BASE)


def make_controller(config: AllocatorConfig, **changes: int) -> Controller:
    return Controller(config, FleetRules(**changes), capacity=20.0, replicas=4)


def up_weights() -> Weights:
    """A policy that always wants one replica more than the baseline."""
    weights = checkpoint._like()
    layers = weights.network["params"]
    layers["Dense_2"]["bias"] = jnp.array([0.0, 0.0, 50.0])
    base = {key: jnp.float32(value) for key, value in BASE.items()}
    return weights._replace(deviation=weights.deviation + 1, base=base, capacity=jnp.float32(20))


@pytest.fixture
def policy_dir(tmp_path: Path) -> str:
    checkpoint.save(up_weights(), tmp_path / "policy")
    return str(tmp_path / "policy")


def with_policy(policy_dir: str, **changes: object) -> Controller:
    return make_controller(msgspec.structs.replace(DRIVING, policy_dir=policy_dir, **changes))


def test_without_a_policy_the_baseline_decides() -> None:
    decision = make_controller(DRIVING).decide(CALM, 0.0)
    assert decision == Decision(target=4, reason="baseline", baseline=4, learned=None)


def test_a_promoted_policy_corrects_the_baseline_and_shadow_mode_only_logs_it(policy_dir: str) -> None:
    assert with_policy(policy_dir).decide(CALM, 0.0) == Decision(5, "learned", 4, 5)
    assert with_policy(policy_dir, mode="shadow").decide(CALM, 0.0) == Decision(4, "shadow", 4, 5)


def test_a_policy_is_loaded_while_it_runs_and_a_bad_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    controller = with_policy(str(tmp_path / "policy"))
    assert controller.decide(CALM, 0.0).reason == "baseline"
    checkpoint.save(up_weights(), tmp_path / "policy")
    assert controller.decide(CALM, 10.0).reason == "learned"
    checkpoint.save(up_weights(), tmp_path / "policy")
    (tmp_path / "policy" / "layout.json").write_text("{}")
    assert controller.decide(CALM, 20.0).reason == "learned"
    assert "the promoted policy is not used" in caplog.text
    shutil.rmtree(tmp_path / "policy")
    assert [controller.decide(CALM, 10.0 * number).reason for number in (3, 4)] == ["learned", "baseline"]


def test_a_promoted_policy_brings_the_capacity_of_a_replica(policy_dir: str) -> None:
    checkpoint.save(up_weights()._replace(capacity=jnp.float32(40)), Path(policy_dir))
    half_as_many = with_policy(policy_dir).decide(CALM, 0.0)
    assert (half_as_many.baseline, half_as_many.learned) == (2, 3)


def test_the_kill_switch_and_strange_states_leave_it_to_the_baseline(policy_dir: str, tmp_path: Path) -> None:
    switch = tmp_path / "off"
    controller = with_policy(policy_dir, kill_switch=str(switch))
    switch.touch()
    assert controller.decide(CALM, 0.0) == Decision(4, "kill switch", 4, None)
    switch.unlink()
    assert controller.decide(CALM, 10.0).reason == "learned"
    strange = with_policy(policy_dir, max_distance=0.1)
    assert strange.decide(CALM, 0.0)[:2] == (4, "out of distribution")


def test_repeated_breaches_hand_over_to_the_baseline_for_a_while(policy_dir: str) -> None:
    controller = with_policy(policy_dir, max_breaches=2, penalty_intervals=3)
    late = msgspec.structs.replace(CALM, late_share=0.5)
    states = [late, late, CALM, CALM, CALM]
    reasons = [controller.decide(state, 10.0 * number).reason for number, state in enumerate(states)]
    assert reasons == ["learned", "breaches", "breaches", "breaches", "learned"]


def test_missing_metrics_change_nothing_at_first_and_then_the_fleet_is_made_safe() -> None:
    config = msgspec.structs.replace(DRIVING, max_missing=3, safe_replicas=6)
    controller = make_controller(config)
    targets = [controller.decide(None, 10.0 * number) for number in range(3)]
    assert [one.target for one in targets] == [4, 4, 6]
    assert targets[0].reason == "metrics missing"
    assert controller.decide(CALM, 40.0).reason == "baseline"


def test_steps_are_bounded_and_none_goes_down_after_one_up_or_while_replicas_start() -> None:
    controller = make_controller(msgspec.structs.replace(DRIVING, cooldown_intervals=2), max_step_up=2)
    busy = msgspec.structs.replace(CALM, rate=400, throughput=80)
    assert controller.decide(busy, 0.0).target == 6
    idle = LiveState(rate=1, throughput=1, waiting=0, ready=6, warming=0, late_share=0)
    decisions = [controller.decide(idle, 10.0 * number) for number in (1, 2, 3)]
    assert [one[:2] for one in decisions] == [(6, "cool-down"), (6, "cool-down"), (5, "baseline")]
    warming = msgspec.structs.replace(idle, ready=4, warming=2)
    assert controller.decide(warming, 50.0).target == 6
