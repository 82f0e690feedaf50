import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.transformer import attend_causally
from engine.training.products import attend_causally_in_blocks, multiply, target_losses

TOLERANCES = {jnp.float32: 1e-5, jnp.bfloat16: 0.02}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_close(got: jax.Array, expected: jax.Array, tolerance: float) -> None:
    """Compare with the largest value as the measure: rounding errors of a sum are of its order."""
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))


def test_products_of_bfloat16_and_their_gradients_are_near_those_of_float32() -> None:
    x, kernel, weights = normal(0, 2, 5, 24), normal(1, 24, 40), normal(2, 2, 5, 40)
    got, expected = (
        jax.value_and_grad(lambda x, kernel, of=of: jnp.sum(of(x, kernel) * weights), argnums=(0, 1))(x, kernel)
        for of in (multiply, jnp.matmul)
    )
    np.testing.assert_allclose(got[0], expected[0], rtol=0.05)
    for one, other in zip(got[1], expected[1], strict=True):
        assert_close(one, other, 0.02)


def test_a_product_is_exact_for_what_bfloat16_can_hold() -> None:
    x, kernel = jnp.arange(12.0).reshape(3, 4), jnp.arange(20.0).reshape(4, 5)
    np.testing.assert_array_equal(multiply(x, kernel), np.asarray(x) @ np.asarray(kernel))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_attention_in_blocks_and_its_gradients_equal_the_obvious_one(dtype) -> None:
    q, k, v, weights = normal(0, 2, 24, 4, 8), normal(1, 2, 24, 2, 8), normal(2, 2, 24, 2, 8), normal(3, 2, 24, 4, 8)

    def blocked(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend_causally_in_blocks(layer, q, k, v, block=10, dtype=dtype)

    got, expected = (
        (of(0, q, k, v), jax.grad(lambda *qkv, of=of: jnp.sum(of(0, *qkv) * weights), argnums=(0, 1, 2))(q, k, v))
        for of in (blocked, attend_causally)
    )
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_losses_and_their_gradients_equal_the_obvious_ones(dtype) -> None:
    hidden, embedding, weights = normal(0, 12, 16), normal(1, 50, 16) / 4, normal(2, 12)
    targets = jnp.arange(12) * 4

    def obvious(hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(hidden @ embedding.T)[jnp.arange(12), targets]

    def ours(hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        return target_losses(hidden, embedding, targets, dtype)

    got, expected = (
        (of(hidden, embedding), jax.grad(lambda *pair, of=of: weights @ of(*pair), argnums=(0, 1))(hidden, embedding))
        for of in (ours, obvious)
    )
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, TOLERANCES[dtype])
