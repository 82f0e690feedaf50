from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.loader import STARTER
from engine.model.matrix import Form, Panels, embed, hold, multiply, quantise_rows, score
from engine.model.transformer import attend_causally
from engine.tokenizer import Tokenizer
from engine.weights.load import load_model, read_model_config

pytestmark = pytest.mark.usefixtures("kernels")

FORMS: tuple[Form, ...] = ("panels", "int8", "int8 panels", "int8 weights")
SIZES = st.sampled_from([1, 3, 4, 16, 37, 64, 130])


def as_bytes(x: np.ndarray) -> np.ndarray:
    """What rows, quantised by hand, stand for, in float64."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(x * inverse).astype(np.float64) * (largest.astype(np.float64) / 127)


def expected_product(form: Form, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    used = as_bytes(weights.T).T if form.startswith("int8") else weights.astype(np.float64)
    rows = as_bytes(x) if form in ("int8", "int8 panels") else x.astype(np.float64)
    return rows @ used


@settings(max_examples=60, deadline=None)
@given(data=st.data(), form=st.sampled_from(FORMS))
def test_every_form_gives_the_products_that_numpy_gives(form: Form, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 20) | st.sampled_from([95, 96, 97, 128, 200]))
    num_inputs, num_outputs = data.draw(SIZES), data.draw(SIZES)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, weights = (
        (rng.standard_normal(shape) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
        for shape in ((rows, num_inputs), (num_inputs, num_outputs))
    )
    bias = rng.standard_normal(num_outputs).astype(np.float32) if data.draw(st.booleans()) else None
    is_table = data.draw(st.booleans())
    matrix = hold(jnp.asarray(weights.T if is_table else weights), form, is_table=is_table)
    got = jax.jit(multiply)(jnp.asarray(x), matrix, None if bias is None else jnp.asarray(bias))
    expected = expected_product(form, x, weights) + (0 if bias is None else bias)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max() + 1e-30)


@pytest.mark.parametrize("form", ["panels", "int8 panels"])
def test_a_rows_numbers_do_not_depend_on_the_rows_beside_it(form: Form) -> None:
    rng = np.random.default_rng(0)
    matrix = hold(jnp.asarray(rng.standard_normal((200, 130)), jnp.float32), form)
    x = jnp.asarray(rng.standard_normal((110, 200)), jnp.float32)
    together = np.asarray(jax.jit(multiply)(x, matrix))
    for count in range(1, 14):
        np.testing.assert_array_equal(np.asarray(jax.jit(multiply)(x[:count], matrix)), together[:count])
    np.testing.assert_array_equal(np.asarray(jax.jit(multiply)(x[97:], matrix)), together[97:])


def test_both_int8_paths_agree_to_the_last_bits() -> None:
    rng = np.random.default_rng(1)
    weights, x = jnp.asarray(rng.standard_normal((96, 70))), jnp.asarray(rng.standard_normal((9, 96)))
    xla, own = (np.asarray(jax.jit(multiply)(x, hold(weights, form))) for form in ("int8", "int8 panels"))
    np.testing.assert_allclose(own, xla, rtol=1e-6)


@pytest.mark.parametrize("form", ["plain", *FORMS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_shows_and_spoils_no_other(form: Form, bad: float) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 40)).astype(np.float32)
    matrix = hold(jnp.asarray(rng.standard_normal((40, 70)), jnp.float32), form)
    whole = np.asarray(jax.jit(multiply)(x, matrix))
    x[3, 39] = bad
    got = np.asarray(jax.jit(multiply)(x, matrix))
    assert not np.isfinite(got[3]).any()
    np.testing.assert_array_equal(np.delete(got, 3, axis=0), np.delete(whole, 3, axis=0))


@pytest.mark.parametrize("form", ["int8", "int8 panels"])
def test_rows_too_small_to_be_divided_by_do_not_overflow(form: Form) -> None:
    got = np.asarray(jax.jit(multiply)(jnp.full((2, 40), 1e-37), hold(jnp.ones((40, 70)), form)))
    assert (np.abs(got) < 1e-34).all()


@pytest.mark.parametrize("form", ["plain", *FORMS])
def test_zeros_stay_zeros(form: Form) -> None:
    matrix = hold(jnp.ones((40, 70)).at[:, 5].set(0), form)
    got = np.asarray(jax.jit(multiply)(jnp.zeros((2, 40)).at[1].set(1), matrix))
    assert (got[0] == 0).all()
    assert got[1, 5] == 0
    np.testing.assert_allclose(np.delete(got[1], 5), 40, rtol=1e-5)


@pytest.mark.parametrize("form", ["plain", *FORMS])
def test_a_table_is_looked_up_and_scored(form: Form) -> None:
    rng = np.random.default_rng(3)
    table = rng.standard_normal((133, 30)).astype(np.float32)
    held = hold(jnp.asarray(table), form, is_table=True)
    tokens = np.array([[0, 132, 64], [63, 7, 7]])
    used = as_bytes(table) if form.startswith("int8") else table
    np.testing.assert_allclose(embed(held, jnp.asarray(tokens), dtype=jnp.float32), used[tokens], rtol=1e-5)
    x = rng.standard_normal((2, 3, 30)).astype(np.float32)
    expected = expected_product(form, x.reshape(6, 30), table.T).reshape(2, 3, 133)
    np.testing.assert_allclose(jax.jit(score)(x, held), expected, atol=1e-4)


@pytest.mark.parametrize("form", ["plain", *FORMS])
def test_products_have_the_type_of_the_rows_unless_another_is_asked_for(form: Form) -> None:
    matrix = hold(jnp.ones((16, 8), jnp.bfloat16), form)
    x = jnp.ones((2, 3, 16), jnp.bfloat16)
    assert multiply(x, matrix).dtype == jnp.bfloat16
    assert multiply(x, matrix, dtype=jnp.dtype(jnp.float32)).dtype == jnp.float32
    assert multiply(x, matrix).shape == (2, 3, 8)


def test_int8_weights_on_a_gpu_keep_the_rows_floats() -> None:
    rng = np.random.default_rng(4)
    weights, x = rng.standard_normal((64, 48)), rng.standard_normal((5, 64))
    got = multiply(jnp.asarray(x, jnp.bfloat16), hold(jnp.asarray(weights), "int8 weights"))
    rows = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    expected = rows @ as_bytes(weights.astype(np.float32).T).T
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_quantised_row_is_within_half_a_step_of_the_row(seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 17)).astype(np.float32)
    values, scales = map(np.asarray, quantise_rows(jnp.asarray(x)))
    assert np.abs(values).max(axis=1).tolist() == [127] * 3
    assert (np.abs(values * scales[:, None] - x) <= scales[:, None] * 0.5001).all()


def test_arguments_that_do_not_fit_together_are_refused_by_the_kernel() -> None:
    panels = hold(jnp.ones((16, 64)), "panels")
    too_many = Panels(panels.values, 65)
    with pytest.raises(jax.errors.JaxRuntimeError, match="rows, panels and bias do not fit together"):
        jax.block_until_ready(jax.jit(multiply)(jnp.ones((2, 16)), too_many))
    with pytest.raises(jax.errors.JaxRuntimeError, match="rows, panels and bias do not fit together"):
        jax.block_until_ready(jax.jit(multiply)(jnp.ones((2, 17)), panels))


def test_int8_weights_keep_the_starter_models_judgement() -> None:
    config = read_model_config(STARTER)
    text = (Path(__file__).parents[3] / "engine" / "tokenizer.py").read_text(encoding="utf-8")
    tokens = jnp.asarray(Tokenizer.from_directory(STARTER).encode(text)[:512])[None]

    def log_probabilities(form: Form) -> np.ndarray:
        def keep(path, parameter):
            is_matrix = path[-1] in ("kernel", "embedding")
            return hold(parameter, form, is_table=path[-1] == "embedding") if is_matrix else parameter

        loaded = load_model(STARTER, dtype=jnp.float32, hold=keep)

        def compute(weights, tokens):
            model = nnx.merge(loaded.graphdef, weights)
            positions = jnp.arange(tokens.shape[1])[None]
            return jax.nn.log_softmax(model.logits(model(tokens, positions, attend_causally)))

        return np.asarray(jax.jit(compute)(loaded.weights, tokens), np.float64)

    whole, small = log_probabilities("plain"), log_probabilities("int8 panels")
    assert whole.shape == (1, 512, config.vocab_size)
    divergence = (np.exp(whole) * (whole - small)).sum(axis=-1).mean()
    assert 1e-6 < divergence < 0.01, "int8 is another model, but hardly"
    targets = np.asarray(tokens)[:, 1:, None]
    loss, loss_int8 = (-np.take_along_axis(scores[:, :-1], targets, axis=-1).mean() for scores in (whole, small))
    assert abs(loss_int8 - loss) < 0.02
