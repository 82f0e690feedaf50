"""Muon: momentum whose matrix is made orthogonal before it is applied (Jordan 2024).

The same update as `optax.contrib.muon` with its defaults, at half the cost on a CPU: without a batch axis of 1, and
with the products of the Newton-Schulz iteration in bfloat16 where those are faster, as its author runs them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_BETA = 0.95
_EPSILON = 1e-8


class MuonState(NamedTuple):
    """What an update leaves behind."""

    num_steps: jax.Array
    momentum: Any


def orthogonalize(matrix: jax.Array, dtype: Any) -> jax.Array:
    """Return nearly the nearest semi-orthogonal matrix, by five quintic Newton-Schulz iterations."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (jnp.linalg.norm(x) + _EPSILON)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        x_low = x.astype(dtype)
        gram = jnp.matmul(x_low, x_low.T, preferred_element_type=jnp.float32)
        gram_low = gram.astype(dtype)
        polynomial = b * gram + c * jnp.matmul(gram_low, gram_low, preferred_element_type=jnp.float32)
        x = a * x + jnp.matmul(polynomial.astype(dtype), x_low, preferred_element_type=jnp.float32)
    result: jax.Array = x.T if is_tall else x
    return result


def scale_by_muon(dtype: Any) -> optax.GradientTransformation:
    """Return the transformation of gradients of matrices `[in, out]`; products take operands of `dtype`."""

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        step = state.num_steps + 1
        momentum = jax.tree.map(lambda m, g: _BETA * m + (1 - _BETA) * g, state.momentum, gradients)

        def direction(m: jax.Array, g: jax.Array) -> jax.Array:
            # Nesterov's look ahead, both parts freed of their bias towards zero.
            ahead = _BETA * m / (1 - _BETA ** (step + 1)) + (1 - _BETA) * g / (1 - _BETA**step)
            size_in, size_out = g.shape
            scale: float = max(1.0, size_out / size_in) ** 0.5
            return orthogonalize(ahead, dtype) * scale

        return jax.tree.map(direction, momentum, gradients), MuonState(step, momentum)

    return optax.GradientTransformation(init, update)
