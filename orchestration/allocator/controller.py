"""The controller: looks at the live fleet each interval, decides a target, says why, and hands it to an actuator.

The rules that hold in the simulator hold here (`simulator.guard`): between least and most, a bounded step, no step
down while replicas start. The M/M/c baseline always decides; a learned policy may correct it while it is sound:

- **kill switch**: a file that exists makes the baseline decide; nothing needs to be restarted;
- **shadow mode**: the learned policy is asked and logged, the baseline decides;
- **out of distribution**: a state far from all that it was trained on is the baseline's;
- **repeated breaches**: after `max_breaches` late intervals in a row the baseline decides for `penalty_intervals`;
- **missing metrics**: without them nothing changes, after `max_missing` intervals the fleet goes to its safe size;
- **hot reload**: a policy that is promoted (another one in the directory) is read before the next decision; one that
  cannot be read is logged, and the old one stays.

Every `Decision` is logged with its reason. Knows neither Kubernetes nor engines.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import msgspec
import numpy as np
from jax import Array

from orchestration.allocator import checkpoint
from orchestration.allocator.baselines import QUEUEING, decide_queueing, hold
from orchestration.allocator.errors import CheckpointError
from orchestration.allocator.forecaster import Forecaster
from orchestration.allocator.policy import NETWORK, Weights, choose, describe_state, distance, normalise
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


class ControllerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the controller decides."""

    policy_dir: str = ""
    """Directory of the promoted policy; empty: the baseline alone decides."""
    kill_switch: str = ""
    """A file; while it exists the baseline decides."""
    is_shadow: bool = True
    """Ask the learned policy and log what it says, but follow the baseline."""
    caution: float = 1.0
    """See `policy.choose`; `allocator evaluate` tunes it."""
    hold_intervals: float = 2.0
    cooldown_intervals: int = 3
    """After a step up there is no step down for so long."""
    max_distance: float = 8.0
    """In deviations from the states of training; beyond, the baseline decides."""
    max_breaches: int = 3
    penalty_intervals: int = 60
    max_missing: int = 6
    safe_replicas: int = 4
    """Where the fleet goes when nothing has been measured for `max_missing` intervals; never below what it has."""


class Decision(NamedTuple):
    """What was decided, by whom and why."""

    target: int
    reason: Reason
    baseline: int
    """What the baseline wanted, before guards."""
    learned: int | None
    """What the learned policy wanted, where it was asked."""


class Controller:
    """Decides each interval; `decide` is called by one thread."""

    def __init__(
        self,
        config: ControllerConfig,
        rules: FleetRules,
        *,
        capacity: float,
        base: dict[str, float],
        replicas: int,
        on_decision: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        """`capacity`: requests per second that a replica sustains; `base`: the M/M/c baseline's tuned setting."""
        self._config, self._rules, self._capacity, self._on_decision = config, rules, capacity, on_decision
        self._base = {key: jnp.full(1, base[key], jnp.float32) for key in QUEUEING.grid}
        self._memory = QUEUEING.start(jnp.full(1, float(replicas)))
        self._recent: Array = self._memory.recent
        self._forecaster = Forecaster(interval_s=rules.interval_s)
        self._weights: Weights | None = None
        self._stamp = 0
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
        base, self._memory = decide_queueing(self._base, self._memory, seen)
        wanted, learned, reason = base, None, self._obstacle()
        if self._weights is not None and reason != "kill switch":
            state = describe_state(base, seen)
            if distance(self._weights, np.asarray(state)[0]) > self._config.max_distance:
                reason = "out of distribution"
            logits, _ = NETWORK.apply(self._weights.network, normalise(self._weights, state))
            correction = choose(logits, jnp.float32(self._config.caution))
            learned, self._recent = hold(self._recent, base + correction, jnp.full(1, self._config.hold_intervals))
            if reason == "learned":
                wanted = learned
        target = int(guard(self._rules, wanted, seen.ready, seen.warming)[0])
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
        return "shadow" if self._config.is_shadow else "learned"

    def _note_breach(self, live: LiveState) -> None:
        self._penalty = max(self._penalty - 1, 0)
        self._num_breaches = self._num_breaches + 1 if live.late_share > 0.05 else 0
        if self._num_breaches >= self._config.max_breaches:
            self._penalty = self._config.penalty_intervals

    def _observe(self, live: LiveState, time_s: float) -> Observation:
        def one(value: float) -> Array:
            return jnp.full(1, value, jnp.float32)

        return Observation(
            rate=one(live.rate),
            throughput=one(live.throughput),
            waiting=one(live.waiting),
            ready=one(live.ready),
            warming=one(live.warming),
            late_share=one(live.late_share),
            capacity=one(self._capacity),
            features=jnp.asarray(self._forecaster.features(self._capacity, time_s)),
        )

    def _reload(self) -> None:
        if not self._config.policy_dir:
            return
        directory = Path(self._config.policy_dir)
        try:
            stamp = directory.stat().st_ino
        except OSError:
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._weights = checkpoint.load(directory)
        except CheckpointError as error:
            logger.warning("the promoted policy is not used: %s", error)
        else:
            self._base = {key: jnp.reshape(value, (1,)) for key, value in self._weights.base.items()}
            logger.info("a promoted policy from %s is used", directory)
