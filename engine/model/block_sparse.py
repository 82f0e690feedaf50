"""Block-sparse attention for the chunks of long prompts: each block of queries meets only some blocks of keys.

Which ones is decided without training. XAttention (Xu et al. 2025) showed that the sums on the antidiagonals of small
squares of products tell where attention will be: of every `STRIDE` queries and `STRIDE` keys one number is computed,
and the softmax over them, summed up by block, is the block's score. Kept are, in this order and up to `num_kept`: the
blocks that hold the queries themselves; the blocks before them (local window) and the first ones of the prompt (sinks:
Xiao et al. 2023); what lies around the cut and the cursor; and of all others those with the highest scores. The choice
is one per block of queries and head of the KV.

    attend(q [W, N, H], k_new [W, K, H], v_new [W, K, H], slots [1], starts [1], k, v, selection [8], num_kept=...)
        -> (out [W, N, H], k, v, report [5])

does for one row what `attention.py` does densely, on KV that may be there already, so chunks compose. `selection` is
read at run time: the same program serves dense chunks. Where all scores of a choice are equal they say nothing, and
where `num_kept` blocks are all there is there is nothing to choose: then all are kept, which is dense attention.

`xla_sparse_attention` is the obvious version: the oracle, and the path without the kernel. `native_sparse_attention`
calls `native/attention.c`. With an `implementation` the gathered blocks are left to `jax.nn.dot_product_attention`,
which has kernels for GPUs.
"""

from functools import partial
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from engine import native
from engine.model.attention import HIDDEN, Attention, is_visible, streamed_attention, write_kv

BLOCK = 64
"""Keys of a block, and queries that share a choice."""
STRIDE = 16
"""Queries, and keys, that share an antidiagonal."""
NUM_SINKS, NUM_LOCAL = 1, 1
LEAST_KEPT = 4
"""The fewest blocks that hold the queries' own (two), a sink and a local one."""
_EQUAL = 1e-5

Fallback = Literal["off", "window", "short", "all_kept", "equal"]
"""Why a request that should have been sparse was dense: the engine's setting; a model with windows of its own; a
prompt shorter than a block; as many blocks to keep as there are; scores that were all equal somewhere."""


class Selection(NamedTuple):
    """What the device is told about one chunk, int32 `[8]`."""

    is_sparse: int = 0
    num_real: int = 0
    """How many of the chunk's queries are real; the rest is padding."""
    focus_start: int = 0
    """First position of what lies around the cut and the cursor."""
    focus_end: int = 0
    num_kept: int = 0
    num_sinks: int = NUM_SINKS
    num_local: int = NUM_LOCAL
    unused: int = 0


class Report(NamedTuple):
    """What a chunk's choices came to, summed up over layers, heads of the KV and blocks of queries; float32 `[5]`."""

    num_kept: float = 0.0
    """Blocks kept."""
    num_visible: float = 0.0
    """Blocks that a causal mask would show."""
    mass: float = 0.0
    """Shares of the attention that the kept blocks have by their scores: an estimate, a choice's is at most 1."""
    num_choices: float = 0.0
    num_equal: float = 0.0
    """Choices whose scores were all equal."""


class SparseAttention(Protocol):
    """What every path offers."""

    def __call__(
        self,
        q: jax.Array,
        k_new: jax.Array,
        v_new: jax.Array,
        slots: jax.Array,
        starts: jax.Array,
        k: jax.Array,
        v: jax.Array,
        selection: jax.Array,
        *,
        num_kept: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]: ...


def block_scores(
    q: Float[Array, "W N H"], keys: Float[Array, "K S H"], start: Int[Array, ""], count: Int[Array, ""]
) -> Float[Array, "K Q B"]:
    """Return the share of a block of queries' attention that each block of keys would get, by antidiagonals.

    Real queries are the first `count`; padding weighs nothing, unless it shares a stride with a real one. `S` is a
    multiple of `BLOCK`.
    """
    width, num_heads, size = q.shape
    num_kv_heads, length = keys.shape[0], keys.shape[1]
    group = num_heads // num_kv_heads
    num_choices = -(-width // BLOCK)
    padded = jnp.pad(q, ((0, num_choices * BLOCK - width), (0, 0), (0, 0)))
    strided_q = padded.reshape(-1, STRIDE, num_kv_heads, group, size)[:, ::-1]
    strided_k = keys.reshape(num_kv_heads, -1, STRIDE, size)
    logits = jnp.einsum("tjkgh,ksjh->kgts", strided_q, strided_k, preferred_element_type=jnp.float32)
    logits = logits / (size**0.5 * STRIDE)
    last = start + jnp.minimum(jnp.arange(1, logits.shape[2] + 1) * STRIDE, count) - 1
    visible = jnp.arange(length // STRIDE) * STRIDE <= last[:, None]
    shares = jax.nn.softmax(jnp.where(visible, logits, HIDDEN), axis=-1)
    is_real = jnp.arange(logits.shape[2]) * STRIDE < count
    shares = jnp.where(is_real[:, None], shares, 0)
    by_choice = shares.reshape(num_kv_heads, group, num_choices, BLOCK // STRIDE, -1, BLOCK // STRIDE).sum((1, 3, 5))
    num_real = is_real.reshape(num_choices, -1).sum(1) * group
    return by_choice / jnp.maximum(num_real, 1)[:, None]


def choose_blocks(
    scores: Float[Array, "K Q B"], start: Int[Array, ""], selection: Int[Array, "8"], *, num_kept: int
) -> tuple[Bool[Array, "K Q B"], Float[Array, "5"]]:
    """Return which blocks of keys each block of queries keeps, and the report."""
    _, num_choices, num_blocks = scores.shape
    first = start + jnp.arange(num_choices)[:, None] * BLOCK
    num_real = jnp.clip(selection[1] - jnp.arange(num_choices)[:, None] * BLOCK, 0, BLOCK)
    num_visible = jnp.where(num_real > 0, (first + num_real - 1) // BLOCK + 1, 0)
    own, block = first // BLOCK, jnp.arange(num_blocks)
    is_focus = (block * BLOCK < selection[3]) & ((block + 1) * BLOCK > selection[2])
    bonus = jnp.where(is_focus, 2.0, 0.0)
    bonus = jnp.where((block >= own - selection[6]) | (block < selection[5]), 3.0, bonus)
    bonus = jnp.where(block >= own, 4.0, bonus)
    rank = jnp.where(block < num_visible, scores + bonus, -1.0)
    _, best = jax.lax.top_k(rank, min(num_kept, num_blocks))
    chosen = jnp.any(jax.nn.one_hot(best, num_blocks, dtype=bool), axis=-2) & (rank >= 0)
    most = jnp.max(jnp.where(block < own, scores, 0), axis=-1, keepdims=True)
    least = jnp.min(jnp.where(block < own, scores, jnp.inf), axis=-1, keepdims=True)
    is_few = num_visible <= num_kept
    is_equal = ~is_few & (most - least <= _EQUAL * most)
    kept = jnp.where(is_few | is_equal, block < num_visible, chosen)
    mass = jnp.sum(jnp.where(kept, scores, 0), -1) / jnp.maximum(jnp.sum(scores, -1), 1e-30)
    mass = jnp.where((is_few | is_equal)[..., 0], 1.0, mass)
    is_used = jnp.broadcast_to(num_real[:, 0] > 0, mass.shape)
    counts = (kept, jnp.broadcast_to(block < num_visible, kept.shape), mass * is_used, is_used, is_equal)
    return kept, jnp.stack([jnp.sum(count.astype(jnp.float32)) for count in counts])


def masked_attention(
    q: Float[Array, "W N H"],
    keys: Float[Array, "K S H"],
    values: Float[Array, "K S H"],
    start: Int[Array, ""],
    kept: Bool[Array, "K Q B"],
) -> Float[Array, "W N H"]:
    """Attend to the keys of kept blocks in the obvious way, over all scores at once: the oracle of every other."""
    width, num_heads, size = q.shape
    num_kv_heads = keys.shape[0]
    grouped = q.reshape(width, num_kv_heads, -1, size)
    scores = jnp.einsum("tkgh,ksh->kgts", grouped, keys, preferred_element_type=jnp.float32) * size**-0.5
    seen = jnp.repeat(jnp.repeat(kept, BLOCK, axis=1)[:, :width], BLOCK, axis=2)
    seen &= is_visible(jnp.arange(keys.shape[1]), start + jnp.arange(width)[:, None])
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, HIDDEN), axis=-1).astype(values.dtype)
    out = jnp.einsum("kgts,ksh->tkgh", weights, values).reshape(width, num_heads, size)
    is_real = jnp.repeat(jnp.any(kept, axis=(0, 2)), BLOCK)[:width]
    return jnp.where(is_real[:, None, None], out, 0)


def gathered_attention(
    q: Float[Array, "W N H"],
    keys: Float[Array, "K S H"],
    values: Float[Array, "K S H"],
    start: Int[Array, ""],
    kept: Bool[Array, "K Q B"],
    *,
    num_kept: int,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> Float[Array, "W N H"]:
    """Do what `masked_attention` does where no choice keeps more than `num_kept` blocks, computing only those.

    Blocks of queries take their turns, so no more than one's gathered blocks and scores are held. With an
    `implementation`, `jax.nn.dot_product_attention` attends to the blocks gathered for all of them.
    """
    width, num_heads, size = q.shape
    num_kv_heads, group = keys.shape[0], num_heads // keys.shape[0]
    num_choices, num_blocks = kept.shape[1:]
    most = min(num_kept, num_blocks)
    # Kept blocks in their order, then some that are not and are masked.
    listed = jnp.argsort(~kept, axis=-1, stable=True)[..., :most]
    is_listed = jnp.take_along_axis(kept, listed, axis=-1)
    blocks_k, blocks_v = (x.reshape(num_kv_heads, num_blocks, BLOCK, size) for x in (keys, values))
    padded = jnp.pad(q, ((0, num_choices * BLOCK - width), (0, 0), (0, 0)))
    by_choice = padded.reshape(num_choices, BLOCK, num_kv_heads, group, size).transpose(0, 2, 1, 3, 4)

    def gather(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return a choice's keys and values `[K, C, H]` and which of them each query sees `[K, BLOCK, C]`."""
        own = listed[:, index]
        k, v = (jax.vmap(lambda x, i: x[i])(x, own).reshape(num_kv_heads, -1, size) for x in (blocks_k, blocks_v))
        position = (own[..., None] * BLOCK + jnp.arange(BLOCK)).reshape(num_kv_heads, 1, -1)
        is_seen = is_visible(position, (start + index * BLOCK + jnp.arange(BLOCK))[:, None])
        return k, v, is_seen & jnp.repeat(is_listed[:, index], BLOCK, axis=-1)[:, None]

    def attend(index: jax.Array) -> jax.Array:
        k, v, is_seen = gather(index)
        scores = jnp.einsum("ktgh,ksh->kgts", by_choice[index], k, preferred_element_type=jnp.float32) * size**-0.5
        weights = jax.nn.softmax(jnp.where(is_seen[:, None], scores, HIDDEN), axis=-1).astype(v.dtype)
        return jnp.einsum("kgts,ksh->ktgh", weights, v)

    if implementation is None:
        out = jax.lax.map(attend, jnp.arange(num_choices))
    else:
        k, v, is_seen = jax.vmap(gather)(jnp.arange(num_choices))
        out = jax.nn.dot_product_attention(
            by_choice.reshape(-1, BLOCK, group, size),
            k.reshape(-1, most * BLOCK, 1, size),
            v.reshape(-1, most * BLOCK, 1, size),
            mask=is_seen.reshape(-1, 1, BLOCK, most * BLOCK),
            implementation=implementation,
        ).reshape(by_choice.shape)
    out = jnp.where(jnp.any(kept, axis=(0, 2))[:, None, None, None, None], out, 0)
    return out.transpose(0, 2, 1, 3, 4).reshape(-1, num_heads, size)[:width]


def xla_sparse_attention(
    q: Float[Array, "W N H"],
    k_new: Float[Array, "W K H"],
    v_new: Float[Array, "W K H"],
    slots: Int[Array, "1"],
    starts: Int[Array, "1"],
    k: Float[Array, "slots K S H"],
    v: Float[Array, "slots K S H"],
    selection: Int[Array, "8"],
    *,
    num_kept: int,
    implementation: Literal["xla", "cudnn"] | None = None,
    dense: Attention = streamed_attention,
) -> tuple[Float[Array, "W N H"], Float[Array, "slots K S H"], Float[Array, "slots K S H"], Float[Array, "5"]]:
    """Write; choose and gather, or attend densely where that was asked for or scores are equal: then whole chunks.

    `dense` computes those.
    """
    k, v = write_kv(k_new, v_new, slots, starts, k, v)
    start = starts[0]
    arguments = (q, k_new, v_new, slots, starts, k, v)

    def attend_densely(report: jax.Array) -> tuple[jax.Array, jax.Array]:
        return dense(*arguments)[0], report

    def attend_sparsely() -> tuple[jax.Array, jax.Array]:
        keys, values = k[slots[0]], v[slots[0]]
        kept, report = choose_blocks(block_scores(q, keys, start, selection[1]), start, selection, num_kept=num_kept)
        every = jnp.stack([report[1], report[1], report[3], report[3], report[4]])
        attended: tuple[jax.Array, jax.Array] = jax.lax.cond(
            report[4] > 0,
            lambda: attend_densely(every),
            lambda: (
                gathered_attention(q, keys, values, start, kept, num_kept=num_kept, implementation=implementation),
                report,
            ),
        )
        return attended

    out, report = jax.lax.cond(
        (selection[0] > 0) & (slots[0] >= 0), attend_sparsely, lambda: attend_densely(jnp.zeros(5, jnp.float32))
    )
    return out, k, v, report


def native_sparse_attention(
    q: Float[Array, "W N H"],
    k_new: Float[Array, "W K H"],
    v_new: Float[Array, "W K H"],
    slots: Int[Array, "1"],
    starts: Int[Array, "1"],
    k: Float[Array, "slots K S H"],
    v: Float[Array, "slots K S H"],
    selection: Int[Array, "8"],
    *,
    num_kept: int,
) -> tuple[Float[Array, "W N H"], Float[Array, "slots K S H"], Float[Array, "slots K S H"], Float[Array, "5"]]:
    """Call `native/attention.c`: as `native_attention`, and `S` a multiple of `BLOCK`."""
    del num_kept  # the kernel reads it from `selection`
    out, k, v, _, report = call_kernel(q, k_new, v_new, slots, starts, k, v, selection)
    return out, k, v, report


def call_kernel(*arguments: jax.Array) -> list[jax.Array]:
    """Return out, k, v, which blocks were kept (uint8 `[K, Q, B]`) and the report."""
    q, k, v = arguments[0], arguments[5], arguments[6]
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    results.append(jax.ShapeDtypeStruct((k.shape[1], -(-q.shape[0] // BLOCK), k.shape[2] // BLOCK), jnp.uint8))
    results.append(jax.ShapeDtypeStruct((5,), jnp.float32))
    call = jax.ffi.ffi_call(native.SPARSE_ATTENTION, results, input_output_aliases={5: 1, 6: 2})
    return list(call(*arguments))


def self_test(attention: SparseAttention, *, head_size: int, dtype: str = "float32") -> float:
    """Return the largest difference from `xla_sparse_attention` on random chunks: dense, sparse, all kept, padded."""
    width, num_kept, worst = 136, 5, 0.0
    rng = np.random.default_rng(0)
    shapes = [(width, 4, head_size), (width, 2, head_size), (width, 2, head_size)]
    q, k_new, v_new = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    k, v = (jnp.asarray(rng.standard_normal((2, 2, 704, head_size)), dtype) for _ in range(2))
    paths = [jax.jit(partial(path, num_kept=num_kept)) for path in (xla_sparse_attention, attention)]
    for start, is_sparse, count in ((450, 1, 130), (37, 1, 136), (300, 0, 136)):
        selection = Selection(is_sparse, count, focus_start=100, focus_end=180, num_kept=num_kept)
        arguments = (q, k_new, v_new, jnp.array([1]), jnp.array([start]), k, v, jnp.array(selection, jnp.int32))
        expected, got = (path(*arguments) for path in paths)
        pairs = [tuple(np.asarray(x, np.float32) for x in pair) for pair in zip(expected, got, strict=True)]
        pairs[0] = (pairs[0][0][:count], pairs[0][1][:count])
        for want, have in pairs:
            difference = np.abs(want - have)
            worst = max(worst, float(difference.max()) if np.isfinite(difference).all() else float("inf"))
    return worst
