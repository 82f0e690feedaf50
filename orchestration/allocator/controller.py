"""The controller: looks at the live fleet each interval, decides a target, says why, and hands it to an actuator.

The rules that hold in the simulator hold here (`simulator.guard`): between least and most, a bounded step, no step
down while replicas start. The M/M/c baseline always decides; a learned policy may correct it while it is sound:

- **kill switch**: a file that exists makes the baseline decide; nothing needs to be restarted;
- **shadow mode**: the learned policy is asked and logged, the baseline decides;
- **out of distribution**: a state far from all that it was trained on is the baseline's;
- **repeated breaches**: after `max_breaches` late intervals in a row the baseline decides for `penalty_intervals`;
- **missing metrics**: without them nothing changes, after `max_missing` intervals the fleet goes to its safe size;
- **hot reload**: a policy that is promoted (another one in the directory) is read before the next decision; one that
  cannot be read is logged, and the old one stays. One that is taken away (gone at two decisions in a row, since a
  replacement is gone for a moment) decides no more.

Every `Decision` is logged with its reason. Knows neither Kubernetes nor engines.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import msgspec
import numpy as np

from orchestration.allocator import checkpoint
from orchestration.allocator.baselines import QUEUEING, decide_queueing
from orchestration.allocator.config import AllocatorConfig
from orchestration.allocator.errors import CheckpointError
from orchestration.allocator.forecaster import Forecaster
from orchestration.allocator.policy import Weights, correct, distance, start_corrected
from orchestration.allocator.simulator import FleetRules, Observation, guard

logger = logging.getLogger(__name__)

Reason = Literal[
    "baseline", "learned", "shadow", "kill switch", "out of distribution", "breaches", "metrics missing", "cool-down"
]


class LiveState(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of the last interval."""

    rate: float
    """Requests per second that came."""
    throughput: float
    """Requests per second that were answered."""
    waiting: float
    ready: int
    warming: int
    late_share: float
    """Share of requests whose first token came after the SLO."""


class Decision(NamedTuple):
    """What was decided, by whom and why."""

    target: int
    reason: Reason
    baseline: int
    """What the baseline wanted, before guards."""
    learned: int | None
    """What the learned policy wanted, where it was asked."""


# As whole programs: operation by operation they would be a hundred, each compiled beside the service.
_decide_base = jax.jit(decide_queueing)
_correct = jax.jit(correct)
_guard = jax.jit(guard, static_argnums=0)


def _one(value: float) -> Any:
    return np.full(1, value, np.float32)


class Controller:
    """Decides each interval; `decide` is called by one thread."""

    def __init__(
        self,
        config: AllocatorConfig,
        rules: FleetRules,
        *,
        capacity: float,
        replicas: int,
        on_decision: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        """`capacity`: requests per second that a replica sustains, until a policy says another."""
        self._config, self._rules, self._on_decision = config, rules, on_decision
        self._own_capacity = self._capacity = capacity
        self._own_base = self._base = {key: _one(getattr(config, key)) for key in QUEUEING.grid}
        self._memory = jax.jit(start_corrected)(_one(replicas))
        self._forecaster = Forecaster(interval_s=rules.interval_s)
        self._weights: Weights | None = None
        self._setting: dict[str, Any] = {}
        self._stamp = self._num_gone = 0
        self._num_missing = self._num_breaches = self._penalty = self._since_up = 0
        self._target = replicas

    def decide(self, live: LiveState | None, time_s: float) -> Decision:
        """Return the target for the next interval; `live` is None where metrics are missing. Time is Unix time."""
        decision = self._decide(live, time_s)
        if decision.target > self._target:
            self._since_up = 0
        self._target = decision.target
        logger.info(
            "target %d (%s): baseline %d, learned %s",
            decision.target,
            decision.reason,
            decision.baseline,
            decision.learned,
        )
        self._on_decision(decision)
        return decision

    def _decide(self, live: LiveState | None, time_s: float) -> Decision:
        self._reload()
        self._since_up += 1
        if live is None:
            self._num_missing += 1
            safe = max(self._target, self._config.safe_replicas)
            target = safe if self._num_missing >= self._config.max_missing else self._target
            return Decision(target, "metrics missing", target, None)
        self._num_missing = 0
        self._note_breach(live)
        self._forecaster.update(np.array([live.rate]), time_s)
        seen = self._observe(live, time_s)
        base, base_memory = _decide_base(self._base, self._memory.base, seen)
        self._memory = self._memory._replace(base=base_memory)
        wanted, learned, reason = base, None, self._obstacle()
        if self._weights is not None and reason != "kill switch":
            learned, state, self._memory = _correct(self._weights, self._setting, self._memory, base, seen)
            if distance(self._weights, np.asarray(state)[0]) > self._config.max_distance:
                reason = "out of distribution"
            if reason == "learned":
                wanted = learned
        target = int(_guard(self._rules, wanted, seen.ready, seen.warming)[0])
        if target < live.ready + live.warming and self._since_up <= self._config.cooldown_intervals:
            target, reason = live.ready + live.warming, "cool-down"
        return Decision(target, reason, int(base[0]), None if learned is None else int(learned[0]))

    def _obstacle(self) -> Reason:
        """Return `learned`, or what keeps the learned policy from deciding."""
        if self._config.kill_switch and Path(self._config.kill_switch).exists():
            return "kill switch"
        if self._weights is None:
            return "baseline"
        if self._penalty > 0:
            return "breaches"
        return "learned" if self._config.mode == "learned" else "shadow"

    def _note_breach(self, live: LiveState) -> None:
        self._penalty = max(self._penalty - 1, 0)
        self._num_breaches = self._num_breaches + 1 if live.late_share > 0.05 else 0
        if self._num_breaches >= self._config.max_breaches:
            self._penalty = self._config.penalty_intervals

    def _observe(self, live: LiveState, time_s: float) -> Observation:
        features: Any = self._forecaster.features(self._capacity, time_s)
        return Observation(
            rate=_one(live.rate),
            throughput=_one(live.throughput),
            waiting=_one(live.waiting),
            ready=_one(live.ready),
            warming=_one(live.warming),
            late_share=_one(live.late_share),
            capacity=_one(self._capacity),
            features=features,
        )

    def _reload(self) -> None:
        if not self._config.policy_dir:
            return
        directory = Path(self._config.policy_dir)
        try:
            stamp = directory.stat().st_ino
        except OSError:
            self._note_gone(directory)
            return
        self._num_gone = 0
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            weights = checkpoint.load(directory)
        except CheckpointError as error:
            logger.warning("the promoted policy is not used: %s", error)
            return
        self._weights, self._capacity = weights, float(weights.capacity)
        self._base, self._setting = (
            {key: _one(float(value)) for key, value in one.items()} for one in (weights.base, weights.setting)
        )
        logger.info("a promoted policy from %s is used", directory)

    def _note_gone(self, directory: Path) -> None:
        self._num_gone += 1
        if self._num_gone < 2 or self._weights is None:
            return
        self._weights, self._stamp = None, 0
        self._base, self._capacity = self._own_base, self._own_capacity
        logger.warning("the policy in %s was taken away: the baseline decides", directory)
