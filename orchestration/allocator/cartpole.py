"""CartPole-v1 as a batch of arrays (Barto, Sutton and Anderson, 1983; the constants of Gymnasium), to test the learner.

A learner that does not balance the pole is broken; one that does, and yet loses to a plain rule, has a hard problem.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from orchestration.allocator.policy import Network
from orchestration.allocator.ppo import PpoConfig, learn

SOLVED = 475.0
_MAX_STEPS = 500
_APPLY = Network(num_actions=2).apply
_CONFIG = PpoConfig(num_steps=64, num_epochs=4, num_minibatches=4, learning_rate=2.5e-3)


class CartPole:
    """`num` carts."""

    def __init__(self, num: int) -> None:
        self._num = num

    def _fresh(self, key: Array) -> Array:
        return jax.random.uniform(key, (self._num, 4), minval=-0.05, maxval=0.05)

    def reset(self, key: Array) -> tuple[Any, Array]:
        """Return upright poles, and what is seen of them."""
        state = self._fresh(key)
        return (state, jnp.zeros(self._num)), state

    def step(self, state: Any, action: Array, key: Array) -> tuple[Any, Array, Array, Array]:
        """Push each cart; the reward is 1 for each step that the pole stands."""
        (x, speed, angle, turning), steps = state[0].T, state[1] + 1
        force = jnp.where(action == 1, 10.0, -10.0)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        push = (force + 0.05 * turning**2 * sine) / 1.1
        turn = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        thrust = push - 0.05 * turn * cosine / 1.1
        after = jnp.stack([x + 0.02 * speed, speed + 0.02 * thrust, angle + 0.02 * turning, turning + 0.02 * turn], 1)
        fell = (jnp.abs(after[:, 0]) > 2.4) | (jnp.abs(after[:, 2]) > 12 * 2 * jnp.pi / 360)
        ended = fell | (steps >= _MAX_STEPS)
        after = jnp.where(ended[:, None], self._fresh(key), after)
        return (after, jnp.where(ended, 0.0, steps)), after, jnp.ones(self._num), ended.astype(jnp.float32)


def mean_return(weights: Any, *, num: int = 100, seed: int = 1) -> float:
    """Return the mean number of steps that `num` poles stand when the likeliest push is chosen, at most 500."""
    environment = CartPole(num)

    def step(carry: tuple[Any, Array, Array, Array], key: Array) -> tuple[tuple[Any, Array, Array, Array], None]:
        state, seen, alive, total = carry
        action = _APPLY(weights, seen)[0].argmax(1)
        state, seen, reward, ended = environment.step(state, action, key)
        return (state, seen, alive * (1 - ended), total + alive * reward), None

    key, own = jax.random.split(jax.random.key(seed))
    state, seen = environment.reset(own)
    start = (state, seen, jnp.ones(num), jnp.zeros(num))
    (*_, total), _ = lax.scan(step, start, jax.random.split(key, _MAX_STEPS))
    return float(total.mean())


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Learn with three seeds until CartPole is solved, at most 60 s each; the headline is the least mean return."""
    rows = []
    for seed in range(3):
        weights = Network(num_actions=2).init(jax.random.key(seed), jnp.zeros((1, 4)))

        def is_done(number: int, weights: Any, reward: float) -> bool:
            return number % 20 == 0 and mean_return(weights) >= SOLVED

        weights, updates = learn(CartPole(32), _APPLY, weights, _CONFIG, budget_s=60, seed=seed, is_done=is_done)
        # Other poles than those that said when to stop.
        reached = mean_return(weights, num=200, seed=100 + seed)
        rows.append({"seed": seed, "return_mean": reached, "updates": updates, "steps": updates * 64 * 32})
        on_progress(f"seed {seed}: mean return {reached:.1f} after {updates} updates")
    return {"cartpole_return_min": min(row["return_mean"] for row in rows), "solved_at": SOLVED}, rows
