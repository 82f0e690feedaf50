"""One fleet as a Gymnasium environment, for learners and studies of others; `training.py` has its own batch of fleets.

**Observation**: `policy.STATE_LAYOUT`, not normalised. **Action**: 0, 1, 2 for -1, 0, +1 replica on what the M/M/c
baseline wants. **Reward**: that of training: replicas beyond the baseline's and lateness cost, in eighths of one.
An episode is truncated after `episode` intervals and never terminates. `info` has what happened in the interval.
"""

from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from orchestration.allocator.arena import Arena
from orchestration.allocator.baselines import QUEUEING, Smoothed, decide_queueing
from orchestration.allocator.policy import NUM_ACTIONS, STATE_LAYOUT, describe_state
from orchestration.allocator.service import Service
from orchestration.allocator.simulator import Fleet, FleetRules, Totals, Traffic, advance, guard, start
from orchestration.allocator.training import reward_of

_BOUND = 1e6
_NUM_DRAWS = 4
"""Different draws of the traffic that episodes take place in."""


class FleetEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """A fleet on the tuning stretch of an arena; episodes begin at random places of it."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's name and type
    render_mode = None

    def __init__(self, arena: Arena, *, base: dict[str, float], price: float = 12.0, episode: int = 1440) -> None:
        """`base`: the baseline's setting; `price`: what a late interval costs, in replicas."""
        self._arena, self._price, self._episode = arena, price, episode
        self._base = {key: jnp.full(1, base[key], jnp.float32) for key in QUEUEING.grid}
        self._service = Service(*(jnp.full(1, value, jnp.float32) for value in arena.service))
        self.observation_space = gymnasium.spaces.Box(-_BOUND, _BOUND, (len(STATE_LAYOUT),), np.float32)
        self.action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self._num_intervals = arena.split_s // arena.rules.interval_s
        self._draw = self._place = self._age = 0
        self._fleet: Fleet
        self._memory: Smoothed
        self._wanted: Array

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin at a random place of a random draw, with a fleet that suits the traffic there."""
        super().reset(seed=seed, options=options)
        self._draw = int(self.np_random.integers(_NUM_DRAWS))
        self._place = int(self.np_random.integers(max(self._num_intervals - self._episode, 1)))
        self._age = 0
        traffic = self._traffic(failing=1.0)
        ready = jnp.ceil(traffic.features[:, 2] * 1.3 + 1)
        self._fleet = start(self._arena.rules, self._service, Traffic(*(value[None] for value in traffic)), ready)
        self._memory = QUEUEING.start(ready)
        return self._look(), {"replicas": float(ready[0])}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Correct the baseline and run one interval."""
        traffic = self._traffic(failing=float(self.np_random.random()))
        self._fleet, added, reward = _run(
            self._arena.rules, self._service, self._fleet, self._wanted, jnp.float32(action), traffic, self._price
        )
        self._place = min(self._place + 1, self._num_intervals - 1)
        self._age += 1
        info = {name: float(getattr(added, name)[0]) for name in ("replica_s", "requests", "late", "dropped")}
        return self._look(), float(reward[0]), False, self._age >= self._episode, info

    def _look(self) -> NDArray[np.float32]:
        seen = self._fleet.seen._replace(features=self._traffic(failing=1.0).features)
        self._fleet = self._fleet._replace(seen=seen)
        self._wanted, self._memory, state = _describe(self._base, self._memory, seen)
        clipped: NDArray[np.float32] = np.clip(np.asarray(state[0]), -_BOUND, _BOUND)
        return clipped

    def _traffic(self, *, failing: float) -> Traffic:
        interval_s = self._arena.rules.interval_s
        arrivals = self._arena.draw(self._arena.scale, self._draw)[self._place * interval_s :][:interval_s]
        features = self._arena.foreseen(self._draw)[self._place]
        return Traffic(jnp.asarray(arrivals)[:, None], jnp.full(1, failing), jnp.asarray(features)[None])


@jax.jit
def _describe(base: dict[str, Array], memory: Smoothed, seen: Any) -> tuple[Array, Smoothed, Array]:
    wanted, memory = decide_queueing(base, memory, seen)
    return wanted, memory, describe_state(wanted, seen)


@partial(jax.jit, static_argnames=("rules",))
def _run(
    rules: FleetRules, service: Service, fleet: Fleet, wanted: Array, action: Array, traffic: Traffic, price: float
) -> tuple[Fleet, Totals, Array]:
    target = guard(rules, wanted + action - 1, fleet.seen.ready, fleet.seen.warming)
    fleet, added = advance(rules, service, fleet, target, traffic)
    reward, _ = reward_of(rules, added, wanted, price)
    return fleet, added, reward
