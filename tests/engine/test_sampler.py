import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.sampler import NEVER, best_token, sample, unpack_allowed

draw = jax.jit(sample)


def sample_rows(logits, *, temperature=1.0, top_k=0, top_p=1.0, seed=0, index=0) -> np.ndarray:
    rows = logits.shape[0]

    def column(value, dtype):
        return jnp.broadcast_to(jnp.asarray(value, dtype), (rows,))

    return np.asarray(
        draw(
            jnp.asarray(logits, jnp.float32),
            column(temperature, jnp.float32),
            column(top_k, jnp.int32),
            column(top_p, jnp.float32),
            column(seed, jnp.uint32),
            column(index, jnp.int32),
        )
    )


def kept_tokens(logits: np.ndarray, *, top_k: int, top_p: float) -> set[int]:
    """The obvious version: sort, cut at k, then cut where the probability before a token reaches p."""
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    mass = np.exp(logits[order] - logits[order].max())
    before = np.concatenate([[0], np.cumsum(mass / mass.sum())[:-1]])
    last = logits[order[max(1, int((before < top_p).sum())) - 1]]
    return set(np.flatnonzero(logits >= last).tolist())


@given(arrays(np.float32, (3, 130), elements=st.sampled_from([float(x) for x in range(-5, 6)])))
def test_the_best_token_is_the_first_of_the_highest(logits: np.ndarray) -> None:
    assert np.asarray(best_token(jnp.asarray(logits))).tolist() == logits.argmax(axis=-1).tolist()


def test_temperature_zero_is_greedy_beside_rows_that_sample() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    got = sample_rows(logits, temperature=np.array([0, 5, 0, 5]))
    assert got[[0, 2]].tolist() == logits.argmax(axis=-1)[[0, 2]].tolist()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (7, 0.5), (1, 1.0), (0, 1e-6)])
def test_only_tokens_within_top_k_and_top_p_are_drawn_and_all_of_them_can_be(top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(1).standard_normal(12).astype(np.float32)
    seeds = np.arange(3000, dtype=np.uint32)
    got = sample_rows(np.tile(logits, (len(seeds), 1)), temperature=1.0, top_k=top_k, top_p=top_p, seed=seeds)
    assert set(got.tolist()) == kept_tokens(logits, top_k=top_k, top_p=top_p)


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = np.array([0.0, 1.0, 2.0, -1.0], np.float32)
    seeds = np.arange(20_000, dtype=np.uint32)
    got = sample_rows(np.tile(logits, (len(seeds), 1)), temperature=0.7, seed=seeds)
    expected = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    # 5 standard deviations of a binomial share with n = 20,000 are at most 0.018.
    assert np.abs(np.bincount(got, minlength=4) / len(seeds) - expected).max() < 0.018


def test_a_draw_depends_on_seed_and_index_and_on_no_other_row() -> None:
    logits = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    alone = [sample_rows(logits[i : i + 1], seed=5, index=i)[0] for i in range(8)]
    assert sample_rows(logits, seed=5, index=np.arange(8)).tolist() == alone
    same_scores = np.tile(logits[:1], (64, 1))
    assert len(set(sample_rows(same_scores, seed=5, index=np.arange(64)).tolist())) > 5
    assert len(set(sample_rows(same_scores, seed=np.arange(64)).tolist())) > 5


@settings(max_examples=30)
@given(st.sets(st.integers(0, 41), min_size=1), st.floats(0, 2))
def test_a_masked_token_is_never_chosen(allowed: set[int], temperature: float) -> None:
    bits = np.zeros(42, bool)
    bits[list(allowed)] = True
    packed = jnp.asarray(np.packbits(bits, bitorder="little")[None])
    mask = unpack_allowed(packed, 42)
    assert np.asarray(mask)[0].tolist() == bits.tolist()
    logits = np.random.default_rng(3).standard_normal((1, 42)).astype(np.float32)
    masked = np.where(bits, logits, NEVER)
    assert int(sample_rows(masked, temperature=temperature)[0]) in allowed


def test_a_top_p_too_small_for_float32_keeps_the_best_token() -> None:
    logits = np.random.default_rng(4).standard_normal((2, 30)).astype(np.float32)
    assert sample_rows(logits, top_p=1e-46).tolist() == logits.argmax(axis=-1).tolist()
