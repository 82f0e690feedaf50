import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.training.muon import orthogonalize, scale_by_muon

SHAPES = {"square": (16, 16), "wide": (16, 48), "tall": (40, 16)}


def gradients(step: int) -> dict[str, jax.Array]:
    return {name: jax.random.normal(jax.random.key(step), shape) for name, shape in SHAPES.items()}


def test_the_update_equals_optax() -> None:
    ours = optax.chain(scale_by_muon(jnp.float32), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.02))
    theirs = optax.contrib.muon(0.02, weight_decay=0.1)
    params = gradients(99)
    states = [transform.init(params) for transform in (ours, theirs)]
    for step in range(3):
        updates = []
        for index, transform in enumerate((ours, theirs)):
            update, states[index] = transform.update(gradients(step), states[index], params)
            updates.append(update)
        for name in SHAPES:
            np.testing.assert_allclose(updates[0][name], updates[1][name], atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_orthogonalizing_brings_singular_values_near_one_and_keeps_the_directions(dtype, tolerance) -> None:
    for matrix in gradients(0).values():
        left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
        within = left.T @ orthogonalize(matrix, dtype) @ right.T
        values = jnp.diag(within)
        assert values.min() > 0.3
        assert values.max() < 1.4
        assert jnp.abs(within - jnp.diag(values)).max() < tolerance
