"""Choose the next token from scores, inside the compiled step.

Knows no sequences and no slots: every argument has one entry a row. The noise of a row depends only on its seed and
on how many tokens it has produced, so that what runs beside it changes nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

NEVER = -1e30
"""Score of a token that must not be chosen; finite, so that a row of nothing else still yields a token."""


_LEAST_TOP_P = 1e-9
"""Any less would be 0 in float32, which no token is needed to reach."""


def unpack_allowed(allowed: UInt[Array, "B bytes"], vocab_size: int) -> Bool[Array, "B V"]:
    """Unpack one bit per token, least significant first (as `np.packbits(..., bitorder="little")` packs)."""
    bits = (allowed[:, :, None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    return bits.reshape(allowed.shape[0], -1)[:, :vocab_size].astype(bool)


def best_token(logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Return the first of the highest scores, as `argmax` does.

    In two passes, blocks first: XLA's CPU backend does not vectorise `argmax`, but it does `max` (17 times faster).
    """
    rows, size = logits.shape
    block = 64
    padded = jnp.pad(logits, ((0, 0), (0, -size % block)), constant_values=-jnp.inf).reshape(rows, -1, block)
    best_block = jnp.argmax(padded.max(axis=-1), axis=-1)
    within = jnp.argmax(jnp.take_along_axis(padded, best_block[:, None, None], axis=1)[:, 0], axis=-1)
    return (best_block * block + within).astype(jnp.int32)


def logit_gap(logits: Float[Array, "B V"]) -> Float[Array, "B"]:
    """Return the distance between the two best scores; 0 where they tie."""
    best = best_token(logits)
    rest = jnp.where(jnp.arange(logits.shape[1]) == best[:, None], -jnp.inf, logits)
    gap: Float[Array, "B"] = logits.max(axis=-1) - rest.max(axis=-1)
    return gap


def sample(
    logits: Float[Array, "B V"],
    temperature: Float[Array, "B"],
    top_k: Int[Array, "B"],
    top_p: Float[Array, "B"],
    seed: UInt[Array, "B"],
    index: Int[Array, "B"],
) -> Int[Array, "B"]:
    """Return one token a row: the best where temperature is 0, else drawn after temperature, top-k, top-p in turn.

    Tokens that tie with the last one kept are kept too. The draw is the Gumbel maximum over the kept tokens.
    """
    best = best_token(logits)

    def draw() -> Int[Array, "B"]:
        scores = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        keys = jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(seed, index)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[-1:], jnp.float32))(keys)
        drawn = best_token(jnp.where(is_kept(scores, top_k, top_p), scores + noise, NEVER * 2))
        return jnp.where(temperature > 0, drawn, best)

    chosen: Int[Array, "B"] = jax.lax.cond(jnp.any(temperature > 0), draw, lambda: best)
    return chosen


def is_kept(scores: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"]) -> Bool[Array, "B V"]:
    """Tell which tokens stay: the `top_k` best, and of those the fewest best whose probability reaches `top_p`.

    Without sorting: both limits are the largest score at which enough (tokens, probability) lies at or above it, found
    bit by bit, from the highest of 32 down. Sorting a vocabulary takes XLA seconds to compile and milliseconds to run.
    """
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))  # grows with the score

    def largest_reaching(weights: Float[Array, "B V"], wanted: Float[Array, "B"]) -> UInt[Array, "B"]:
        def try_bit(i: Int[Array, ""], limit: UInt[Array, "B"]) -> UInt[Array, "B"]:
            higher = limit | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
            reached = jnp.sum(jnp.where(order >= higher[:, None], weights, 0.0), axis=-1)
            return jnp.where(reached >= wanted, higher, limit)

        limit: UInt[Array, "B"] = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(scores.shape[0], jnp.uint32))
        return limit

    best_k = largest_reaching(jnp.ones_like(scores), top_k.astype(jnp.float32))
    in_top_k = (top_k <= 0)[:, None] | (order >= best_k[:, None])
    mass = jax.nn.softmax(jnp.where(in_top_k, scores, NEVER), axis=-1)
    best_p = largest_reaching(mass, jnp.maximum(top_p, _LEAST_TOP_P))
    return in_top_k & ((top_p >= 1)[:, None] | (order >= best_p[:, None]))
