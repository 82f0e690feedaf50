"""Proximal policy optimisation (Schulman et al., 2017) in JAX and Optax, for any environment that is a batch of arrays.

Advantages by GAE (Schulman et al., 2016); clipped ratios and values, entropy bonus, gradients clipped by norm, the
details of Huang et al. (2022). Knows no traffic: `cartpole.py` shows that it learns, `training.py` uses it.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import msgspec
import optax
from jax import Array, lax


class Environment(Protocol):
    """A batch of environments; states are trees of arrays."""

    def reset(self, key: Array) -> tuple[Any, Array]:
        """Return (state, observation [B, n])."""

    def step(self, state: Any, action: Array, key: Array) -> tuple[Any, Array, Array, Array]:
        """Return (state, observation, reward [B], ended [B]); what has ended begins anew by itself."""


class PpoConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How PPO learns."""

    num_steps: int = 128
    """Steps of each environment between updates."""
    num_epochs: int = 4
    num_minibatches: int = 4
    learning_rate: float = 1e-3
    discount: float = 0.99
    trace_decay: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value_weight: float = 0.5
    max_norm: float = 0.5


class _Steps(NamedTuple):
    observation: Array
    action: Array
    log_chance: Array
    value: Array
    reward: Array
    ended: Array


class Learner(NamedTuple):
    """Everything that one update changes."""

    weights: Any
    optimiser: Any
    state: Any
    observation: Array
    key: Array


def _optimiser(config: PpoConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.max_norm), optax.adam(config.learning_rate, eps=1e-5))


def begin(environment: Environment, weights: Any, config: PpoConfig, *, seed: int) -> Learner:
    """Return a learner before its first update."""
    key, own = jax.random.split(jax.random.key(seed))
    state, observation = environment.reset(own)
    return Learner(weights, _optimiser(config).init(weights), state, observation, key)


@partial(jax.jit, static_argnames=("environment", "apply", "config"))
def update(
    environment: Environment, apply: Callable[..., Any], config: PpoConfig, learner: Learner
) -> tuple[Learner, Array]:
    """Collect `num_steps` steps, learn from them; return the learner and the mean reward."""

    def act(carry: tuple[Any, Array, Array], _: None) -> tuple[tuple[Any, Array, Array], _Steps]:
        state, observation, key = carry
        key, choose_key, step_key = jax.random.split(key, 3)
        logits, value = apply(learner.weights, observation)
        action = jax.random.categorical(choose_key, logits)
        log_chance = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        state, following, reward, ended = environment.step(state, action, step_key)
        return (state, following, key), _Steps(observation, action, log_chance, value, reward, ended)

    (state, observation, key), steps = lax.scan(
        act, (learner.state, learner.observation, learner.key), None, config.num_steps
    )
    advantages = _advantages(steps, apply(learner.weights, observation)[1], config)
    data = (steps, advantages, advantages + steps.value)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data)
    size = flat[1].shape[0]
    optimiser = _optimiser(config)

    def loss(weights: Any, batch: Any) -> Array:
        part, advantage, goal = batch
        logits, value = apply(weights, part.observation)
        logs = jax.nn.log_softmax(logits)
        ratio = jnp.exp(jnp.take_along_axis(logs, part.action[:, None], 1)[:, 0] - part.log_chance)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - config.clip, 1 + config.clip) * advantage)
        near = part.value + jnp.clip(value - part.value, -config.clip, config.clip)
        miss = jnp.maximum((value - goal) ** 2, (near - goal) ** 2)
        entropy = -(jnp.exp(logs) * logs).sum(1)
        return -gain.mean() + config.value_weight * miss.mean() / 2 - config.entropy * entropy.mean()

    def minibatch(carry: tuple[Any, Any], indices: Array) -> tuple[tuple[Any, Any], None]:
        weights, moments = carry
        gradient = jax.grad(loss)(weights, jax.tree.map(lambda leaf: leaf[indices], flat))
        changes, moments = optimiser.update(gradient, moments, weights)
        return (optax.apply_updates(weights, changes), moments), None

    key, *epoch_keys = jax.random.split(key, config.num_epochs + 1)
    order = jnp.concatenate([jax.random.permutation(one, size) for one in epoch_keys])
    order = order.reshape(config.num_epochs * config.num_minibatches, -1)
    (weights, moments), _ = lax.scan(minibatch, (learner.weights, learner.optimiser), order)
    return Learner(weights, moments, state, observation, key), steps.reward.mean()


def _advantages(steps: _Steps, last_value: Array, config: PpoConfig) -> Array:
    def back(carry: tuple[Array, Array], step: _Steps) -> tuple[tuple[Array, Array], Array]:
        advantage, following = carry
        goes_on = 1.0 - step.ended
        change = step.reward + config.discount * following * goes_on - step.value
        advantage = change + config.discount * config.trace_decay * goes_on * advantage
        return (advantage, step.value), advantage

    _, advantages = lax.scan(back, (jnp.zeros_like(last_value), last_value), steps, reverse=True)
    return advantages


def learn(
    environment: Environment,
    apply: Callable[..., Any],
    weights: Any,
    config: PpoConfig,
    *,
    budget_s: float,
    seed: int = 0,
    max_updates: int = 1_000_000,
    is_done: Callable[[int, Any, float], bool] = lambda number, weights, reward: False,
) -> tuple[Any, int]:
    """Update until the time is up or `is_done(updates, weights, mean reward)`; return weights and number of updates."""
    learner = begin(environment, weights, config, seed=seed)
    began = time.monotonic()
    for number in range(1, max_updates + 1):
        learner, reward = update(environment, apply, config, learner)
        if is_done(number, learner.weights, float(reward)) or time.monotonic() - began > budget_s:
            break
    return learner.weights, number
