"""Training: first the oracle's decisions are imitated, then PPO improves on that in the simulator.

Imitation gives the network, from the start, odds that the fleet will need less or more than the baseline wants once
replicas that start now are there; the tuning of `caution` turns odds into decisions. PPO then pays for replicas and for
lateness, whose price (a Lagrange multiplier) rises while more windows are missed than may be. Fleets begin at random
places of the tuning stretch, with traffic at random scales. Nothing of the test stretch is ever drawn.

PPO's policy is taken only if, on the last part of the tuning stretch, which neither has trained on, it costs less at
the same service level than the imitation alone.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray

from orchestration.allocator.arena import Arena
from orchestration.allocator.baselines import QUEUEING, decide_queueing
from orchestration.allocator.forecaster import FEATURES, foresee
from orchestration.allocator.oracle import needed_replicas, plan
from orchestration.allocator.policy import (
    LEARNED,
    NETWORK,
    STATE_LAYOUT,
    Corrected,
    Weights,
    base_setting,
    correct,
    describe_state,
    normalise,
    start_corrected,
)
from orchestration.allocator.ppo import PpoConfig, begin, update
from orchestration.allocator.service import Service
from orchestration.allocator.simulator import LATE_SHARE, Fleet, FleetRules, Totals, Traffic, advance, guard, start
from orchestration.allocator.tuning import tune, tune_over

_SCALES = (0.7, 0.85, 1.0, 1.15)
_FIT_SHARE = 0.75
"""Of the tuning stretch: what is learned from; on the rest it is decided what was learned."""
_TURNS = 2
"""Rounds of imitation: beside the baseline, then as the imitation of the round before drives."""
_DRIVING = {"caution": 1.0, "hold": 2.0, "adapt": 0.0}
_CHECK_SEEDS = (0, 1, 2)
_SAFETY = 0.002
_LEAST_GAIN = 0.002
"""Of the cost, by which PPO's policy has to be better: less is chance."""
_SPENT_SHARE = 0.7
"""Of the windows that may be missed: what caution that is learned while it runs aims at."""
_EPOCHS = 12
_BATCH = 2048


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A trained policy, and how it was come by."""

    weights: Any
    headline: dict[str, float | int | str | None]


def train(
    arena: Arena,
    *,
    attainment: float,
    budget_s: float = 240,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Learn a policy from the arena's tuning stretch; the arena's scale must be set."""
    began = time.monotonic()
    unit = arena.rules.interval_s * arena.rules.window_intervals
    fit_s = int(arena.split_s * _FIT_SHARE) // unit * unit
    fit, check = (0, fit_s), (fit_s, arena.split_s)
    base, hours, reached = tune(QUEUEING, arena, attainment, stretch=fit)
    on_progress(f"baseline to correct: {base}, {hours:.0f} replica-hours, attains {reached:.4f}")
    weights, examples = None, list[tuple[NDArray[np.float32], NDArray[np.int64]]]()
    for turn in range(_TURNS):
        examples.append(_examples(arena, fit, base, turn, weights))
        states, labels = (np.concatenate(parts) for parts in zip(*examples, strict=True))
        weights = imitate(states, labels, base)
        weights = weights._replace(
            may_miss=jnp.float32((1 - attainment) * _SPENT_SHARE), capacity=jnp.float32(arena.service.capacity)
        )
        on_progress(f"imitated {len(states)} decisions of the oracle")
    assert weights is not None, "turns"
    imitated = _check(arena, weights, check, attainment)
    on_progress(f"imitation: {imitated[0]}, {imitated[1]:.1f} replica-hours, attains {imitated[2]:.4f} where checked")
    environment = FleetEnvironment(arena, fit, weights)
    improved, updates = _improve(environment, weights, budget_s, 1 - attainment, on_progress)
    tried = _check(arena, improved, check, attainment)
    on_progress(f"PPO: {tried[0]}, {tried[1]:.1f} replica-hours, attains {tried[2]:.4f} where checked")
    least = imitated[1] * (1 - _LEAST_GAIN)
    takes = tried[2] >= attainment and (tried[1] < least or imitated[2] < attainment)
    taken, (setting, _, _) = (improved, tried) if takes else (weights, imitated)
    return Outcome(
        weights=taken._replace(setting={key: jnp.float32(value) for key, value in setting.items()}),
        headline={
            "train_s": round(time.monotonic() - began, 1),
            "ppo_updates": updates,
            "imitation_replica_hours": imitated[1],
            "imitation_attainment_share": imitated[2],
            "ppo_replica_hours": tried[1],
            "ppo_attainment_share": tried[2],
            "taken": "ppo" if takes else "imitation",
            "simulated_fleet_s_per_s": arena.fleet_s_per_s,
        },
    )


def _check(arena: Arena, weights: Weights, stretch: tuple[int, int], attainment: float) -> Any:
    """Return what the best setting comes to on a stretch, over seeds, with a margin for another stretch."""
    return tune_over(LEARNED, arena, attainment + _SAFETY, _CHECK_SEEDS, stretch=stretch, shared=weights)


def _examples(
    arena: Arena, stretch: tuple[int, int], base: dict[str, float], turn: int, driver: Weights | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return states [n, STATE_LAYOUT] and the oracle's corrections as classes [n], at all scales.

    The fleets are at what the baseline decides, or `driver`: its own decisions bring it into states of their own
    (DAgger, Ross et al., 2011).
    """
    rules, scale = arena.rules, arena.scale
    arrivals, wanted = [], []
    for number, factor in enumerate(_SCALES):
        seed = 100 + turn * len(_SCALES) + number
        arena.scale = scale * factor
        try:
            needed = needed_replicas(arena, stretch, seed=seed)
            arrivals.append(arena.draw(arena.scale, seed)[slice(*stretch)].reshape(-1, rules.interval_s))
        finally:
            arena.scale = scale
        length, lead = rules.window_intervals, rules.warming_intervals + 1
        wanted.append(plan(needed, spared=0, longest_dip=0, window_intervals=length, lead=lead))
    states = _replay(arena, np.stack(arrivals, axis=2), base, driver)
    labels = np.clip(np.stack(wanted, axis=1) - states[:, :, len(FEATURES)], -1, 1).astype(np.int64) + 1
    return states.reshape(-1, states.shape[2]), labels.reshape(-1)


def _replay(
    arena: Arena, arrivals: NDArray[np.float32], base: dict[str, float], driver: Weights | None
) -> NDArray[np.float32]:
    """Return what the network would see beside the baseline, or sees as it drives, [intervals, fleets, STATE_LAYOUT].

    `arrivals` are [intervals, interval_s, fleets].
    """
    num = arrivals.shape[2]
    features = foresee(arrivals, arena.service.capacity, interval_s=arena.rules.interval_s)
    settings = {key: jnp.full(num, value) for key, value in base.items()}
    own = {key: jnp.full(num, value) for key, value in _DRIVING.items()}
    traffic = Traffic(jnp.asarray(arrivals), jnp.ones((len(arrivals), num)), jnp.asarray(features))
    ready = jnp.ceil(jnp.asarray(arrivals[:6].mean((0, 1))) / arena.service.capacity * 1.3 + 1)
    service = Service(*(jnp.full(num, value) for value in arena.service))

    def interval(carry: tuple[Fleet, Corrected], inputs: Traffic) -> tuple[tuple[Fleet, Corrected], Array]:
        fleet, memory = carry
        seen = fleet.seen._replace(features=inputs.features)
        target, base_memory = decide_queueing(settings, memory.base, seen)
        memory, state = memory._replace(base=base_memory), describe_state(target, seen)
        if driver is not None:
            target, state, memory = correct(driver, own, memory, target, seen)
        target = guard(arena.rules, target, seen.ready, seen.warming)
        fleet, _ = advance(arena.rules, service, fleet, target, inputs)
        return (fleet, memory), state

    run: Any = jax.jit(lambda carry, xs: jax.lax.scan(interval, carry, xs))
    _, states = run((start(arena.rules, service, traffic, ready), start_corrected(ready)), traffic)
    return np.asarray(states)


def imitate(states: NDArray[np.float32], labels: NDArray[np.int64], base: dict[str, float]) -> Weights:
    """Return a policy whose odds are those of the labels, by cross-entropy."""
    deviation = states.std(0) + 1e-3
    weights = Weights(
        network=NETWORK.init(jax.random.key(0), jnp.zeros((1, len(STATE_LAYOUT)))),
        mean=jnp.asarray(states.mean(0)),
        deviation=jnp.asarray(deviation),
        base={key: jnp.float32(value) for key, value in base.items()},
        setting={key: jnp.float32(value) for key, value in _DRIVING.items()},
        may_miss=jnp.float32(0.01),
        capacity=jnp.float32(1),
    )
    inputs = jnp.asarray(normalise(weights, jnp.asarray(states)))
    goals = jnp.asarray(labels)
    num_batches = len(states) // _BATCH
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, _EPOCHS * max(num_batches, 1)))

    def loss(network: Any, rows: Array) -> Array:
        logits, _ = NETWORK.apply(network, inputs[rows])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, goals[rows]))

    @jax.jit
    def epoch(carry: Any, rows: Array) -> Any:
        def step(carry: Any, rows: Array) -> Any:
            network, moments = carry
            changes, moments = optimiser.update(jax.grad(loss)(network, rows), moments)
            return (optax.apply_updates(network, changes), moments), None

        return jax.lax.scan(step, carry, rows)[0]

    carry = (weights.network, optimiser.init(weights.network))
    rng = np.random.default_rng(0)
    for _ in range(_EPOCHS):
        rows = rng.permutation(len(states))[: max(num_batches, 1) * _BATCH].reshape(max(num_batches, 1), -1)
        carry = epoch(carry, jnp.asarray(rows))
    return weights._replace(network=carry[0])


class _FleetState(NamedTuple):
    fleet: Fleet
    memory: Corrected
    place: Array
    """[fleets] interval of the prepared traffic."""
    age: Array
    stream: Array
    """[fleets] which of the prepared draws."""
    base: Array
    price: Array
    """A scalar: what a missed interval costs, in replicas; the Lagrange multiplier of the service level."""
    missed: Array
    """A scalar: share of intervals that were late, of late."""


def reward_of(rules: FleetRules, added: Totals, base: Array, price: Array | float) -> tuple[Array, Array]:
    """Return the reward of an interval, and whether it was late: what is paid for beyond `base` costs, and lateness.

    Lateness counts from 0 on, little while it is within what a window may have, and `price` in replicas beyond.
    """
    late = jnp.clip(added.late / jnp.maximum(added.requests, 1) / LATE_SHARE, 0, 3)
    missed = jnp.where(late > 1, late, 0.2 * late**2)
    return -(added.replica_s / rules.interval_s - base) / 8 - price * missed / 8, late > 1


class FleetEnvironment:
    """Fleets as PPO sees them: an action is a correction, 0..2 for -1..+1; episodes are half a day of one draw."""

    num_fleets = 64
    episode = 1440

    def __init__(self, arena: Arena, stretch: tuple[int, int], weights: Weights) -> None:
        self._rules, self._weights = arena.rules, weights
        self._service = Service(*(jnp.full(self.num_fleets, value) for value in arena.service))
        interval_s = arena.rules.interval_s
        draws = [
            arena.trace.draw(scale=arena.scale * factor, seed=200 + seed)[slice(*stretch)].reshape(-1, interval_s)
            for seed, factor in enumerate(_SCALES)
        ]
        stacked = np.stack(draws, axis=2)
        self._features = jnp.asarray(foresee(stacked, arena.service.capacity, interval_s=interval_s))
        self._arrivals = jnp.asarray(stacked)
        self._last = len(stacked) - 1

    def _traffic(self, place: Array, stream: Array, failing: Array) -> Traffic:
        return Traffic(self._arrivals[place, :, stream].T, failing, self._features[place, stream])

    def _begin(self, key: Array) -> _FleetState:
        place_key, stream_key, age_key = jax.random.split(key, 3)
        place = jax.random.randint(place_key, (self.num_fleets,), 0, max(self._last - self.episode, 1))
        stream = jax.random.randint(stream_key, (self.num_fleets,), 0, len(_SCALES))
        one = self._traffic(place, stream, jnp.ones(self.num_fleets))
        first = Traffic(*(value[None] for value in one))
        ready = jnp.ceil(first.features[0, :, 2] * 1.3 + 1)
        fleet = start(self._rules, self._service, first, ready)
        age = jax.random.randint(age_key, (self.num_fleets,), 0, self.episode)
        state = _FleetState(
            fleet, start_corrected(ready), place, age, stream, ready, jnp.float32(12), jnp.float32(0.01)
        )
        return self._look(state)

    def _look(self, state: _FleetState) -> _FleetState:
        features = self._features[state.place, state.stream]
        seen = state.fleet.seen._replace(features=features)
        base, memory = decide_queueing(base_setting(self._weights, seen.rate), state.memory.base, seen)
        return state._replace(
            fleet=state.fleet._replace(seen=seen), memory=state.memory._replace(base=memory), base=base
        )

    def _observe(self, state: _FleetState) -> Array:
        return normalise(self._weights, describe_state(state.base, state.fleet.seen))

    def reset(self, key: Array) -> tuple[Any, Array]:
        """Return fleets at random places, and what their policy sees."""
        state = self._begin(key)
        return state, self._observe(state)

    def step(self, state: Any, action: Array, key: Array) -> tuple[Any, Array, Array, Array]:
        """Correct the baselines, run an interval; the reward is less the more replicas and the more lateness."""
        fresh_key, fail_key = jax.random.split(key)
        seen = state.fleet.seen
        target = guard(self._rules, state.base + action - 1, seen.ready, seen.warming)
        traffic = self._traffic(state.place, state.stream, jax.random.uniform(fail_key, (self.num_fleets,)))
        fleet, added = advance(self._rules, self._service, state.fleet, target, traffic)
        reward, is_late = reward_of(self._rules, added, state.base, state.price)
        place = jnp.minimum(state.place + 1, self._last)
        share = 0.99 * state.missed + 0.01 * is_late.mean()
        state = self._look(state._replace(fleet=fleet, place=place, age=state.age + 1, missed=share))
        ended = (state.age >= self.episode) | (place >= self._last)
        fresh = self._begin(fresh_key)._replace(age=jnp.zeros_like(state.age))

        def pick(new: Array, old: Array) -> Array:
            if new.ndim == 0:
                return old
            return jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        state = jax.tree.map(pick, fresh, state)
        return state, self._observe(state), reward, ended.astype(jnp.float32)


def _improve(
    environment: FleetEnvironment,
    weights: Weights,
    budget_s: float,
    may_miss: float,
    on_progress: Callable[[str], None],
) -> tuple[Weights, int]:
    """Run PPO for the time; return the improved policy and the number of updates."""
    config = PpoConfig(num_steps=256, num_epochs=3, num_minibatches=8, learning_rate=2e-4, discount=0.97, entropy=0.003)
    learner = begin(environment, weights.network, config, seed=0)
    began, number = time.monotonic(), 0
    while time.monotonic() - began < budget_s:
        learner, reward = update(environment, NETWORK.apply, config, learner)
        number += 1
        pressure = jnp.clip(learner.state.missed / may_miss - 1, -0.5, 1)
        price = jnp.clip(learner.state.price * jnp.exp(0.1 * pressure), 2, 60)
        learner = learner._replace(state=learner.state._replace(price=price))
        if number % 20 == 0:
            on_progress(f"PPO update {number}: mean reward {float(reward):.4f}, price {float(price):.1f}")
    return weights._replace(network=learner.weights), number
