"""Attention over the resident KV, behind one small interface.

Every path takes the queries, keys and values of `R` rows of `W` tokens each, writes keys and values into the rows'
slots, and attends causally to all that the slot holds up to each query's own position, or to the last `window`
positions of it:

    attend(q [R*W, N, H], k_new [R*W, K, H], v_new [R*W, K, H], slots [R], starts [R], k, v, window=None)
        -> (out [R*W, N, H], k, v)

with `k`, `v` of shape `[slots, K, S, H]`. A row with a negative slot is empty: nothing is written and its output has
no meaning. The caller guarantees `starts + W <= S`.

`xla_attention` is the obvious version: the oracle, and the path of few queries wherever no other is chosen.
`streamed_attention` is that of many: it holds the scores of one run of keys at a time. `native_attention` calls
`native/attention.c`, which reads the KV in place (XLA's CPU backend copies every slice it multiplies).
"""

import math
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from engine import native

HIDDEN = -1e30
"""Score of a key that is not seen: finite, so that a query that sees none yet makes no NaN."""
_STREAMED_WIDTH = 32
_RUN = 512


def is_visible(keys: jax.Array, queries: jax.Array, window: int | None = None) -> jax.Array:
    """Tell which positions of keys the queries at their positions see; the two are broadcast."""
    visible = keys <= queries
    return visible if window is None else visible & (keys > queries - window)


class Attention(Protocol):
    """What every path offers; `window` is static."""

    def __call__(
        self,
        q: jax.Array,
        k_new: jax.Array,
        v_new: jax.Array,
        slots: jax.Array,
        starts: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        window: int | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]: ...


def xla_attention(
    q: Float[Array, "RW N H"],
    k_new: Float[Array, "RW K H"],
    v_new: Float[Array, "RW K H"],
    slots: Int[Array, "R"],
    starts: Int[Array, "R"],
    k: Float[Array, "slots K S H"],
    v: Float[Array, "slots K S H"],
    *,
    window: int | None = None,
) -> tuple[Float[Array, "RW N H"], Float[Array, "slots K S H"], Float[Array, "slots K S H"]]:
    """Write, gather the rows' slots, attend with a mask; scores and softmax in float32."""
    num_rows, (_, num_heads, size) = slots.shape[0], q.shape
    width, num_kv_heads, capacity = q.shape[0] // num_rows, k.shape[1], k.shape[2]
    k, v = write_kv(k_new, v_new, slots, starts, k, v)
    positions = starts[:, None] + jnp.arange(width)
    grouped = q.reshape(num_rows, width, num_kv_heads, num_heads // num_kv_heads, size)
    scores = jnp.einsum("rwkgh,rksh->rkgws", grouped, k[slots], preferred_element_type=jnp.float32) * size**-0.5
    visible = is_visible(jnp.arange(capacity), positions[:, None, None, :, None], window)
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1).astype(v.dtype)
    out = jnp.einsum("rkgws,rksh->rwkgh", weights, v[slots])
    return out.reshape(q.shape), k, v


def streamed_attention(
    q: Float[Array, "RW N H"],
    k_new: Float[Array, "RW K H"],
    v_new: Float[Array, "RW K H"],
    slots: Int[Array, "R"],
    starts: Int[Array, "R"],
    k: Float[Array, "slots K S H"],
    v: Float[Array, "slots K S H"],
    *,
    window: int | None = None,
) -> tuple[Float[Array, "RW N H"], Float[Array, "slots K S H"], Float[Array, "slots K S H"]]:
    """Do as `xla_attention`, a run of keys at a time, with an online softmax (Milakov & Gimelshein 2018).

    Runs that no query sees are not computed, so the time follows the context and not the capacity.
    """
    num_rows, (_, num_heads, size) = slots.shape[0], q.shape
    width, num_kv_heads, capacity = q.shape[0] // num_rows, k.shape[1], k.shape[2]
    k, v = write_kv(k_new, v_new, slots, starts, k, v)
    positions = (starts[:, None] + jnp.arange(width))[:, None, None, :, None]
    grouped = q.reshape(num_rows, width, num_kv_heads, num_heads // num_kv_heads, size)
    run = math.gcd(capacity, _RUN)
    Carry = tuple[jax.Array, jax.Array, jax.Array]

    def meet(index: jax.Array, carry: Carry) -> Carry:
        top, norm, out = carry

        def cut(x: jax.Array) -> jax.Array:
            place = (num_kv_heads, run, size)
            return jax.vmap(lambda slot: jax.lax.dynamic_slice(x, (slot, 0, index * run, 0), (1, *place))[0])(
                jnp.maximum(slots, 0)
            )

        scores = jnp.einsum("rwkgh,rksh->rkgws", grouped, cut(k), preferred_element_type=jnp.float32) * size**-0.5
        visible = is_visible(index * run + jnp.arange(run), positions, window)
        scores = jnp.where(visible, scores, HIDDEN)
        peak = jnp.maximum(top, scores.max(-1))
        weights = jnp.where(visible, jnp.exp(scores - peak[..., None]), 0)
        fade = jnp.exp(top - peak)
        added = jnp.einsum("rkgws,rksh->rkgwh", weights.astype(v.dtype), cut(v), preferred_element_type=jnp.float32)
        return peak, norm * fade + weights.sum(-1), out * fade[..., None] + added

    shape = (num_rows, num_kv_heads, num_heads // num_kv_heads, width)
    empty = (jnp.full(shape, HIDDEN), jnp.zeros(shape), jnp.zeros((*shape, size)))
    first = 0 if window is None else jnp.maximum(jnp.min(starts) + 1 - window, 0) // run
    end = jnp.max(jnp.where(slots < 0, 0, starts)) + width
    _, norm, out = jax.lax.fori_loop(first, (end + run - 1) // run, meet, empty)
    out = (out / jnp.maximum(norm, 1e-30)[..., None]).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape), k, v


def portable_attention(
    q: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    slots: jax.Array,
    starts: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attend with XLA alone: many queries streamed, few of them in one go."""
    path = streamed_attention if q.shape[0] // slots.shape[0] >= _STREAMED_WIDTH else xla_attention
    return path(q, k_new, v_new, slots, starts, k, v, window=window)


def write_kv(
    k_new: Float[Array, "RW K H"],
    v_new: Float[Array, "RW K H"],
    slots: Int[Array, "R"],
    starts: Int[Array, "R"],
    k: Float[Array, "slots K S H"],
    v: Float[Array, "slots K S H"],
) -> tuple[Float[Array, "slots K S H"], Float[Array, "slots K S H"]]:
    """Write keys and values of `R` rows into their slots; those of empty rows go nowhere."""
    num_rows, (num_tokens, num_kv_heads, size) = slots.shape[0], k_new.shape
    shape = (num_rows, num_tokens // num_rows, num_kv_heads, size)
    positions = starts[:, None] + jnp.arange(shape[1])
    target = jnp.where(slots < 0, k.shape[0], slots)[:, None]
    k = k.at[target, :, positions].set(k_new.reshape(shape), mode="drop")
    v = v.at[target, :, positions].set(v_new.reshape(shape), mode="drop")
    return k, v


def native_attention(
    q: Float[Array, "RW N H"],
    k_new: Float[Array, "RW K H"],
    v_new: Float[Array, "RW K H"],
    slots: Int[Array, "R"],
    starts: Int[Array, "R"],
    k: Float[Array, "slots K S H"],
    v: Float[Array, "slots K S H"],
    *,
    window: int | None = None,
) -> tuple[Float[Array, "RW N H"], Float[Array, "slots K S H"], Float[Array, "slots K S H"]]:
    """Call `native/attention.c`: float32, head sizes that are multiples of 16, KV updated in place."""
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    call = jax.ffi.ffi_call(native.ATTENTION, results, input_output_aliases={5: 1, 6: 2}, vmap_method="sequential")
    attributes = {} if window is None else {"window": np.int64(window)}
    out, k, v = call(q, k_new, v_new, slots, starts, k, v, **attributes)
    return out, k, v


def self_test(attention: Attention, *, head_size: int) -> float:
    """Return the largest difference from `xla_attention` on ragged random rows: short, long, and within a window."""
    worst = 0.0
    rng = np.random.default_rng(0)
    rows: tuple[tuple[int, tuple[int, ...], int | None], ...] = (
        (1, (0, 37, 130), None), (5, (3, 64, 101), None), (70, (0, 61, 120), None),
        (1, (0, 37, 130), 50), (70, (0, 61, 120), 50),
    )  # fmt: skip
    for width, starts, window in rows:
        slots = np.array([2, -1, 0], np.int32)
        shapes = [(3 * width, 4, head_size), (3 * width, 2, head_size), (3 * width, 2, head_size)]
        q, k_new, v_new = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
        k, v = (jnp.asarray(rng.standard_normal((3, 2, 192, head_size)), jnp.float32) for _ in range(2))
        arguments = (q, k_new, v_new, jnp.asarray(slots), jnp.asarray(starts, jnp.int32), k, v)
        expected, got = (jax.jit(partial(path, window=window))(*arguments) for path in (xla_attention, attention))
        is_used = np.repeat(slots >= 0, width)
        pairs = [(np.asarray(want), np.asarray(have)) for want, have in zip(expected, got, strict=True)]
        pairs[0] = (pairs[0][0][is_used], pairs[0][1][is_used])  # an empty row's output has no meaning
        for want, have in pairs:
            difference = np.abs(want - have)
            worst = max(worst, float(difference.max()) if np.isfinite(difference).all() else float("inf"))
    return worst
