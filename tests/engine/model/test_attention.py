from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import native
from engine.model.attention import native_attention, self_test, xla_attention
from engine.model.transformer import attend_causally

pytestmark = pytest.mark.usefixtures("kernels")


def random_case(rng, *, rows, width, heads, kv_heads, size, capacity, starts, slots):
    q = rng.standard_normal((rows * width, heads, size))
    k_new, v_new = rng.standard_normal((2, rows * width, kv_heads, size))
    k, v = rng.standard_normal((2, max(slots) + 2, kv_heads, capacity, size))
    floats = [jnp.asarray(x, jnp.float32) for x in (q, k_new, v_new)]
    kv = [jnp.asarray(x, jnp.float32) for x in (k, v)]
    return (*floats, jnp.asarray(slots, jnp.int32), jnp.asarray(starts, jnp.int32), *kv)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_native_attention_equals_the_reference_on_ragged_rows(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 4))
    width = data.draw(st.sampled_from([1, 2, 7, 16, 33, 65]))
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    size = data.draw(st.sampled_from([16, 48, 64, 80, 128]))
    capacity = 192
    starts = data.draw(st.lists(st.integers(0, capacity - width), min_size=rows, max_size=rows))
    slots = data.draw(st.permutations(range(rows + 1)))[:rows]
    slots = [-1 if data.draw(st.integers(0, 4)) == 0 else slot for slot in slots]
    window = data.draw(st.none() | st.integers(1, capacity + 10))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    case = random_case(
        rng, rows=rows, width=width, heads=kv_heads * group, kv_heads=kv_heads, size=size,
        capacity=capacity, starts=starts, slots=slots,
    )  # fmt: skip
    expected, got = (jax.jit(partial(path, window=window))(*case) for path in (xla_attention, native_attention))
    used = np.repeat(np.array(slots) >= 0, width)
    np.testing.assert_allclose(np.asarray(got[0])[used], np.asarray(expected[0])[used], atol=2e-5)
    for want, have in zip(expected[1:], got[1:], strict=True):
        np.testing.assert_array_equal(np.asarray(have), np.asarray(want))


def test_large_scores_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    case = random_case(rng, rows=1, width=40, heads=2, kv_heads=1, size=64, capacity=128, starts=[60], slots=[0])
    case = (case[0] * 100, *case[1:])
    got, expected = jax.jit(native_attention)(*case)[0], jax.jit(xla_attention)(*case)[0]
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), atol=1e-3)


@pytest.mark.parametrize("window", [None, 1, 7, 50])
def test_attention_over_the_kv_equals_plain_causal_attention(window: int | None) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal((50, heads, 16)), jnp.float32) for heads in (4, 2, 2))
    kv = jnp.zeros((2, 2, 64, 16))
    out, *_ = xla_attention(q, k, v, jnp.array([1]), jnp.array([0]), kv, kv, window=window)
    plain = attend_causally(0, q[None], k[None], v[None], windows=(window,))[0]
    np.testing.assert_allclose(np.asarray(out), np.asarray(plain), atol=1e-5)


def test_a_query_sees_as_many_keys_as_its_window_has() -> None:
    q = k = jnp.zeros((50, 1, 16))
    v = jnp.broadcast_to(jnp.arange(50.0)[:, None, None], (50, 1, 16))
    out = attend_causally(1, q[None], k[None], v[None], windows=(None, 3))[0, :, 0, 0]
    np.testing.assert_allclose(np.asarray(out)[[0, 1, 2, 3, 49]], [0, 0.5, 1, 2, 48], atol=1e-4)


def test_a_row_outside_the_kv_is_refused_before_anything_is_written() -> None:
    case = random_case(
        np.random.default_rng(2), rows=1, width=8, heads=1, kv_heads=1, size=16, capacity=64, starts=[60], slots=[0]
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="a row lies outside the KV"):
        jax.block_until_ready(jax.jit(native_attention)(*case))


def test_the_self_test_notices_a_path_that_computes_other_numbers() -> None:
    def broken(*arguments, window=None):
        out, k, v = xla_attention(*arguments, window=window)
        return out * 1.01, k, v

    def blind(*arguments, window=None):
        return xla_attention(*arguments)

    assert self_test(native_attention, head_size=32) < 1e-5
    assert self_test(broken, head_size=32) > 1e-3
    assert self_test(blind, head_size=32) > 1e-3


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(OSError, match="false failed"):
        native.build(tmp_path)
    assert not list(tmp_path.iterdir()), "an unfinished library stays behind"
