"""Block-sparse attention: every path against the obvious one, and the obvious one against dense attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.attention import streamed_attention, xla_attention
from engine.model.block_sparse import (
    BLOCK,
    STRIDE,
    Report,
    Selection,
    block_scores,
    call_kernel,
    choose_blocks,
    gathered_attention,
    masked_attention,
    native_sparse_attention,
    self_test,
    xla_sparse_attention,
)

CAPACITY = 1024
ATTENTION = {
    "xla": xla_sparse_attention,
    "native": native_sparse_attention,
    "vendor": partial(xla_sparse_attention, implementation="xla"),
}
pytestmark = pytest.mark.usefixtures("kernels")


def random_chunk(*, width=192, start=700, heads=4, kv_heads=2, size=32, seed=0, **choice):
    rng = np.random.default_rng(seed)
    q, k_new, v_new = (
        jnp.asarray(rng.standard_normal((width, n, size)), jnp.float32) for n in (heads, kv_heads, kv_heads)
    )
    k, v = (jnp.asarray(rng.standard_normal((2, kv_heads, CAPACITY, size)), jnp.float32) for _ in range(2))
    told = Selection(**{"is_sparse": 1, "num_real": width, "num_kept": 6} | choice)
    return (q, k_new, v_new, jnp.array([1]), jnp.array([start]), k, v, jnp.array(told, jnp.int32))


def run(path, case):
    return jax.jit(partial(path, num_kept=int(case[7][4])))(*case)


@pytest.mark.parametrize("width", [40, 64, 130])
@pytest.mark.parametrize("window", [None, 50])
def test_streamed_attention_equals_the_obvious_one(width: int, window: int | None) -> None:
    rng = np.random.default_rng(width)
    q, k_new, v_new = (jnp.asarray(rng.standard_normal((3 * width, n, 16)), jnp.float32) for n in (4, 2, 2))
    k, v = (jnp.asarray(rng.standard_normal((4, 2, 576, 16)), jnp.float32) for _ in range(2))
    case = (q, k_new, v_new, jnp.array([2, -1, 0]), jnp.array([0, 7, 430]), k, v)
    expected, got = (jax.jit(partial(path, window=window))(*case) for path in (xla_attention, streamed_attention))
    used = np.repeat([True, False, True], width)
    np.testing.assert_allclose(np.asarray(got[0])[used], np.asarray(expected[0])[used], atol=1e-5)
    for want, have in zip(expected[1:], got[1:], strict=True):
        np.testing.assert_array_equal(np.asarray(have), np.asarray(want))


def test_scores_are_the_softmax_of_antidiagonal_means_summed_up_by_block() -> None:
    q, _, _, _, _, k, _, _ = random_chunk(width=BLOCK, heads=1, kv_heads=1)
    start, keys, queries = 2 * BLOCK, np.asarray(k[1, 0]), np.asarray(q)
    logits = np.full((BLOCK // STRIDE, 3 * BLOCK // STRIDE), -np.inf)
    for t in range(logits.shape[0]):
        for s in range(logits.shape[1]):
            if s * STRIDE <= start + t * STRIDE + STRIDE - 1:
                products = [queries[t * STRIDE + STRIDE - 1 - j, 0] @ keys[s * STRIDE + j] for j in range(STRIDE)]
                logits[t, s] = np.mean(products) / 32**0.5
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = shares.reshape(BLOCK // STRIDE, 3, -1).sum(2).mean(0)
    scores = block_scores(q, k[1], jnp.array(start), jnp.array(BLOCK))[0, 0]
    np.testing.assert_allclose(scores[:3], expected, rtol=1e-4)
    assert not np.asarray(scores[3:]).any(), "blocks that nobody sees have scores"


def test_own_blocks_come_first_then_sinks_and_neighbours_then_the_focus_then_the_best_scores() -> None:
    scores = np.full((1, 1, 16), 0.01, np.float32)
    scores[0, 0, [3, 7, 9]] = 0.2, 0.3, 0.1

    def kept(num_kept: int) -> list[int]:
        told = jnp.array(Selection(1, BLOCK, 5 * BLOCK, 5 * BLOCK + 1, num_kept), jnp.int32)
        chosen, _ = choose_blocks(jnp.asarray(scores), jnp.array(12 * BLOCK + 5), told, num_kept=num_kept)
        return np.flatnonzero(np.asarray(chosen)[0, 0]).tolist()

    assert kept(2) == [12, 13]
    assert kept(4) == [0, 11, 12, 13]
    assert kept(5) == [0, 5, 11, 12, 13]
    assert kept(7) == [0, 3, 5, 7, 11, 12, 13]
    assert kept(14) == list(range(14)), "as many blocks to keep as there are"


@pytest.mark.parametrize("path", ATTENTION.values(), ids=ATTENTION)
def test_with_every_block_kept_it_equals_dense_attention(path) -> None:
    width = 200
    case = random_chunk(width=width, start=700, num_kept=16)
    *got, report = run(path, case)
    for want, have in zip(xla_attention(*case[:7]), got, strict=True):
        np.testing.assert_allclose(np.asarray(have), np.asarray(want), atol=2e-5)
    assert report[0] == report[1]
    assert report[2] == report[3] == 2 * -(-width // BLOCK)


@pytest.mark.parametrize("path", ATTENTION.values(), ids=ATTENTION)
def test_a_chunk_that_is_told_to_be_dense_is(path) -> None:
    case = random_chunk(is_sparse=0)
    *got, report = run(path, case)
    np.testing.assert_allclose(np.asarray(got[0]), np.asarray(xla_attention(*case[:7])[0]), atol=2e-5)
    assert not np.asarray(report).any()


@pytest.mark.parametrize(("heads", "kv_heads", "size", "seed"), [(4, 2, 32, 0), (3, 3, 64, 1), (5, 1, 80, 2)])
def test_the_kernel_keeps_the_blocks_and_computes_what_the_obvious_version_does(heads, kv_heads, size, seed) -> None:
    case = random_chunk(
        heads=heads, kv_heads=kv_heads, size=size, seed=seed, width=200, start=613 + seed, num_real=150 + 10 * seed,
        focus_start=200, focus_end=300,
    )  # fmt: skip
    out, k, v, kept, report = jax.jit(call_kernel)(*case)
    scores = block_scores(case[0], k[1], case[4][0], case[7][1])
    expected, expected_report = choose_blocks(scores, case[4][0], case[7], num_kept=6)
    np.testing.assert_array_equal(np.asarray(kept, bool), np.asarray(expected))
    np.testing.assert_allclose(report, expected_report, rtol=1e-4)
    count = int(case[7][1])
    want = masked_attention(case[0], k[1], v[1], case[4][0], expected)
    np.testing.assert_allclose(np.asarray(out)[:count], np.asarray(want)[:count], atol=2e-5)
    assert np.isfinite(np.asarray(out)).all(), "padding is written to the KV, so it must be finite"
    assert Report(*report).num_kept < Report(*report).num_visible


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_gathering_computes_what_masking_does(implementation) -> None:
    q, _, _, _, starts, k, v, told = random_chunk(width=200, num_real=170)
    kept, _ = choose_blocks(block_scores(q, k[1], starts[0], told[1]), starts[0], told, num_kept=6)
    want = masked_attention(q, k[1], v[1], starts[0], kept)
    got = gathered_attention(q, k[1], v[1], starts[0], kept, num_kept=6, implementation=implementation)
    np.testing.assert_allclose(np.asarray(got)[:170], np.asarray(want)[:170], atol=2e-5)
    assert np.isfinite(np.asarray(got)).all()


@pytest.mark.parametrize("path", ATTENTION.values(), ids=ATTENTION)
def test_where_every_score_is_equal_attention_is_dense_and_counted(path) -> None:
    case = random_chunk()
    case = (jnp.zeros_like(case[0]), *case[1:])
    *got, report = run(path, case)
    np.testing.assert_allclose(np.asarray(got[0]), np.asarray(xla_attention(*case[:7])[0]), atol=2e-5)
    assert Report(*report).num_equal == Report(*report).num_choices == 6
    assert Report(*report).num_kept == Report(*report).num_visible


def test_kept_blocks_hold_more_of_the_attention_than_as_many_others() -> None:
    """Where attention has a place to go, the scores find it."""
    rng = np.random.default_rng(4)
    keys = rng.standard_normal((1, CAPACITY, 32))
    topic = rng.standard_normal(32)
    keys[0, 5 * BLOCK : 6 * BLOCK] += topic
    q = jnp.asarray(rng.standard_normal((BLOCK, 1, 32)) + 2 * topic, jnp.float32)
    told = jnp.array(Selection(1, BLOCK, 0, 0, 4), jnp.int32)
    start = jnp.array(14 * BLOCK)
    kept, report = choose_blocks(
        block_scores(q, jnp.asarray(keys, jnp.float32), start, told[1]), start, told, num_kept=4
    )
    assert bool(kept[0, 0, 5])
    assert Report(*report).mass > 0.5


def test_chunks_that_keep_all_blocks_equal_one_whole_prompt() -> None:
    rng = np.random.default_rng(5)
    q, k_new, v_new = (jnp.asarray(rng.standard_normal((450, n, 32)), jnp.float32) for n in (4, 2, 2))
    k = v = jnp.zeros((2, 2, CAPACITY, 32))
    want = xla_attention(q, k_new, v_new, jnp.array([1]), jnp.array([0]), k, v)[0]
    outs = []
    for start, end in ((0, 130), (130, 386), (386, 450)):
        told = jnp.array(Selection(1, end - start, 0, 0, 16), jnp.int32)
        chunk = (x[start:end] for x in (q, k_new, v_new))
        out, k, v, _ = native_sparse_attention(*chunk, jnp.array([1]), jnp.array([start]), k, v, told, num_kept=16)
        outs.append(out)
    np.testing.assert_allclose(np.concatenate(outs), np.asarray(want), atol=2e-5)


def test_the_self_test_notices_a_path_that_computes_other_numbers() -> None:
    def broken(*arguments, num_kept):
        out, *others = xla_sparse_attention(*arguments, num_kept=num_kept)
        return (out * 1.01, *others)

    assert self_test(native_sparse_attention, head_size=32) < 1e-4
    assert self_test(broken, head_size=32) > 1e-3


def test_the_kernel_refuses_a_chunk_without_real_queries() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="expected at least one real query"):
        jax.block_until_ready(jax.jit(call_kernel)(*random_chunk(num_real=0)))
