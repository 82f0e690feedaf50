"""The family of compiled programs: one per step shape, compiled ahead of the first request.

A program is a function of the weights, the resident KV and one batch; it returns the KV (in place) and one packed
array of chosen tokens. Two more move blocks between the resident KV and the prefix store. Nothing here decides what
runs.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.model.attention import Attention
from engine.model.block_sparse import Report, Selection, SparseAttention
from engine.model.config import ModelConfig
from engine.model.transformer import rope_table
from engine.plan import EnginePlan
from engine.prefix_store import BLOCK_TOKENS
from engine.sampler import NEVER, logit_gap, sample, unpack_allowed
from engine.shapes import Shape

KVCache = list[tuple[jax.Array, jax.Array]]
"""Per layer, keys and values: `[slots, K, S, H]` resident, `[blocks, K, BLOCK_TOKENS, H]` in the prefix store."""

Program = Callable[..., tuple[KVCache, jax.Array]]
"""`(leaves, kv, batch) -> (kv, int32 [2, scored])`: for each scored token its successor, and the bits of its gap. Where
chunks may be sparse, 5 more columns: the bits of the chunk's `Report`, and nothing."""

NOTHING_KEPT = np.zeros(len(Report._fields), np.float32)

COPIES = 64
"""Most blocks that one call moves."""


class Batch(NamedTuple):
    """The plain arrays of one run, on the host before and on the device within.

    `B` sequences: the rows, then the one with a chunk. One with a negative slot is empty. Of each row the last
    `shape.num_scored` real tokens are scored, of a chunk the last one.
    """

    tokens: Any
    """int32 `[rows * width + chunk]`"""
    slots: Any
    """int32 `[B]`"""
    starts: Any
    """int32 `[B]`: position of each sequence's first token."""
    counts: Any
    """int32 `[B]`: how many of its tokens are real; the rest is padding, written to KV and overwritten later."""
    num_wanted: Any
    """int32 `[B]`: how many of its last real tokens the host wants a successor of."""
    temperature: Any
    """float32 `[B]`"""
    top_k: Any
    """int32 `[B]`"""
    top_p: Any
    """float32 `[B]`"""
    seed: Any
    """uint32 `[B]`"""
    num_generated: Any
    """int32 `[B]`: how many tokens it had produced before the first one wanted; with the seed it decides the noise."""
    allowed: Any
    """uint8 `[B, V/8]`: one bit per token that may come first; what comes after may be any token of the vocabulary."""
    selection: Any
    """int32 `[8]`: `Selection` of the chunk."""


def batch_shape(shape: Shape, vocab_size: int) -> Batch:
    """Return the shapes and types of a batch."""
    ints = jax.ShapeDtypeStruct((shape.num_sequences,), jnp.int32)
    floats = jax.ShapeDtypeStruct((shape.num_sequences,), jnp.float32)
    return Batch(
        tokens=jax.ShapeDtypeStruct((shape.num_tokens,), jnp.int32),
        slots=ints,
        starts=ints,
        counts=ints,
        num_wanted=ints,
        temperature=floats,
        top_k=ints,
        top_p=floats,
        seed=jax.ShapeDtypeStruct((shape.num_sequences,), jnp.uint32),
        num_generated=ints,
        allowed=jax.ShapeDtypeStruct((shape.num_sequences, -(-vocab_size // 8)), jnp.uint8),
        selection=jax.ShapeDtypeStruct((len(Selection._fields),), jnp.int32),
    )


def _zeros(config: ModelConfig, plan: EnginePlan, num: int, length: int) -> KVCache:
    shape = (num, config.num_kv_heads, length, config.head_size)
    return [(jnp.zeros(shape, plan.dtype), jnp.zeros(shape, plan.dtype)) for _ in range(config.num_layers)]


class Programs:
    """Compiles, keeps and counts the programs of one engine."""

    def __init__(
        self,
        graphdef: nnx.GraphDef[Any],
        weights: Any,
        config: ModelConfig,
        plan: EnginePlan,
        attention: Attention,
        num_tokens: int,
        compiler_options: dict[str, str | bool] | None = None,
        sparse_attention: SparseAttention | None = None,
    ) -> None:
        """`num_tokens`: ids from here to V exist in the model only, and are never chosen."""
        self.config, self._plan, self.num_tokens = config, plan, num_tokens
        self._graphdef, self._attention, self.sparse_attention = graphdef, attention, sparse_attention
        self._compiler_options = compiler_options or {}
        leaves, self._treedef = jax.tree.flatten((weights, rope_table(config, plan.capacity)))
        self.leaves = self._place(leaves)
        """Weights and rotary table: the first argument of every program."""
        self._leaf_shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        self._compiled: dict[Shape, Program] = {}
        self._lock = threading.Lock()
        self.save_blocks = jax.jit(copy_saves, donate_argnums=0)
        """`(store, kv, count, slots, positions, blocks) -> store`, each of the last three int32 `[COPIES]`."""
        self.load_blocks = jax.jit(copy_loads, donate_argnums=0)
        """`(kv, store, count, slots, positions, blocks) -> kv`."""
        self.num_recompiles = 0
        """Programs compiled when first needed instead of ahead; a defect when it is not 0."""

    def make_kv(self) -> KVCache:
        """Allocate a resident KV, zeroed."""
        return _zeros(self.config, self._plan, self._plan.num_slots, self._plan.capacity)

    def make_store(self) -> KVCache:
        """Allocate a prefix store's KV, zeroed."""
        return _zeros(self.config, self._plan, self._plan.num_blocks, BLOCK_TOKENS)

    def compile_all(self, on_progress: Callable[[str], None]) -> None:
        """Compile every program; lowering holds the interpreter, compiling does not, so threads share the work."""
        shapes = [shape for shape in self._plan.shapes.shapes() if shape not in self._compiled]
        lowered = [self._lower(shape) for shape in shapes]
        with ThreadPoolExecutor(max_workers=4, thread_name_prefix="compile") as pool:
            compiled = pool.map(lambda program: program.compile(self._compiler_options), lowered)
            for number, (shape, program) in enumerate(zip(shapes, compiled, strict=True), start=1):
                self._compiled[shape] = program
                on_progress(f"compiled {number} of {len(shapes)} programs")

    def get(self, shape: Shape) -> Program:
        """Return the program of this shape."""
        program = self._compiled.get(shape)
        if program is None:
            with self._lock:
                self.num_recompiles += 1
                program = self._compiled[shape] = self._lower(shape).compile(self._compiler_options)
        return program

    def _place(self, leaves: list[jax.Array]) -> list[jax.Array]:
        return [jax.device_put(leaf) for leaf in leaves]

    def _lower(self, shape: Shape) -> jax.stages.Lowered:
        kv_shape = (self._plan.num_slots, self.config.num_kv_heads, self._plan.capacity, self.config.head_size)
        layer = jax.ShapeDtypeStruct(kv_shape, jnp.dtype(self._plan.dtype))
        kv = [(layer, layer)] * self.config.num_layers
        batch = batch_shape(shape, self.config.vocab_size)
        step = functools.partial(self._step, shape)
        return jax.jit(step, donate_argnums=1).lower(self._leaf_shapes, kv, batch)

    def _step(self, shape: Shape, leaves: list[jax.Array], kv: KVCache, batch: Batch) -> tuple[KVCache, jax.Array]:
        """Embed, run the layers over all tokens at once, score the last tokens of each sequence, choose."""
        weights, rope = jax.tree.unflatten(self._treedef, leaves)
        model = nnx.merge(self._graphdef, weights)
        rows, width = shape.rows, shape.width
        num_row_tokens = rows * width
        kv = list(kv)
        # The rows, then the chunk: alike to the products, apart for attention.
        parts = []
        if rows:
            parts.append((slice(0, num_row_tokens), slice(0, rows), width))
        if shape.chunk:
            parts.append((slice(num_row_tokens, None), slice(rows, None), shape.chunk))
        positions = jnp.concatenate(
            [(batch.starts[sequences, None] + jnp.arange(size)).reshape(-1) for _, sequences, size in parts]
        )

        reports: list[jax.Array] = []

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            outs, attention = [], functools.partial(self._attention, window=self.config.window_of(layer))
            for tokens, sequences, _ in parts:
                slots, starts = batch.slots[sequences], batch.starts[sequences]
                arguments = (q[tokens], k[tokens], v[tokens], slots, starts, *kv[layer])
                if self.sparse_attention is not None and sequences.start == rows:
                    out, *written, report = self.sparse_attention(
                        *arguments, batch.selection, num_kept=self._plan.sparse_blocks
                    )
                    reports.append(report)
                else:
                    out, *written = attention(*arguments)
                kv[layer] = (written[0], written[1])
                outs.append(out)
            return outs[0] if len(outs) == 1 else jnp.concatenate(outs)

        hidden = model(batch.tokens, positions, attend, rope=rope)
        chosen = choose_tokens(
            shape,
            batch,
            lambda scored: model.logits(hidden[scored]),
            vocab_size=self.config.vocab_size,
            num_tokens=self.num_tokens,
        )
        return kv, append_report(chosen, sum(reports, jnp.asarray(NOTHING_KEPT))) if reports else chosen


def append_report(chosen: jax.Array, report: jax.Array) -> jax.Array:
    """Put a chunk's report behind what was chosen, as bits: one array to fetch."""
    bits = jax.lax.bitcast_convert_type(report, jnp.int32)
    return jnp.append(chosen, jnp.stack([bits, jnp.zeros_like(bits)]), axis=1)


def choose_tokens(
    shape: Shape,
    batch: Batch,
    score: Callable[[jax.Array], jax.Array],
    *,
    vocab_size: int,
    num_tokens: int,
) -> jax.Array:
    """Score the last tokens of each sequence by `score(indices of tokens) -> [scored, V]`, and choose: `Program`'s
    second result."""
    rows, width, num_scored = shape.rows, shape.width, shape.num_scored
    # Indices of scored tokens, and of the sequence that each belongs to.
    last = batch.counts - 1
    scored = jnp.arange(rows)[:, None] * width + jnp.maximum(last[:rows, None] + jnp.arange(1 - num_scored, 1), 0)
    owner = np.repeat(np.arange(rows), num_scored)
    ahead = np.tile(np.arange(num_scored)[::-1], rows)  # how many scored tokens of the row follow
    if shape.chunk:
        scored = jnp.append(scored, rows * width + jnp.maximum(last[-1], 0))
        owner, ahead = np.append(owner, rows), np.append(ahead, 0)
    logits = score(scored.reshape(-1))
    place = batch.num_wanted[owner] - 1 - ahead  # 0: the first one wanted
    allowed = unpack_allowed(batch.allowed, vocab_size)[owner]
    every = jnp.arange(vocab_size) < num_tokens
    logits = jnp.where(jnp.where((place == 0)[:, None], allowed, every), logits, NEVER)
    tokens = sample(
        logits,
        batch.temperature[owner],
        batch.top_k[owner],
        batch.top_p[owner],
        batch.seed[owner],
        batch.num_generated[owner] + place,
    )
    # One array to fetch instead of two.
    gap_bits = jax.lax.bitcast_convert_type(logit_gap(logits), jnp.int32)
    return jnp.stack([tokens, gap_bits])


def copy_saves(
    store: KVCache, kv: KVCache, count: jax.Array, slots: jax.Array, positions: jax.Array, blocks: jax.Array
) -> KVCache:
    return _copy_blocks(kv, store, count, (slots, positions), (blocks, jnp.zeros_like(blocks)))


def copy_loads(
    kv: KVCache, store: KVCache, count: jax.Array, slots: jax.Array, positions: jax.Array, blocks: jax.Array
) -> KVCache:
    return _copy_blocks(store, kv, count, (blocks, jnp.zeros_like(blocks)), (slots, positions))


def _copy_blocks(
    source: KVCache,
    target: KVCache,
    count: jax.Array,
    places: tuple[jax.Array, jax.Array],
    target_places: tuple[jax.Array, jax.Array],
) -> KVCache:
    """Copy `count` blocks from (row, position) to (row, position), one after the other, in place."""

    def copy(i: jax.Array, target: KVCache) -> KVCache:
        def move(from_layer: jax.Array, to_layer: jax.Array) -> jax.Array:
            _, heads, _, size = from_layer.shape
            start = (places[0][i], 0, places[1][i], 0)
            block = jax.lax.dynamic_slice(from_layer, start, (1, heads, BLOCK_TOKENS, size))
            return jax.lax.dynamic_update_slice(to_layer, block, (target_places[0][i], 0, target_places[1][i], 0))

        copied: KVCache = jax.tree.map(move, source, target)
        return copied

    moved: KVCache = jax.lax.fori_loop(0, count, copy, target)
    return moved


def keep_compiled_programs(directory: Path) -> None:
    """Let JAX keep every compiled program in `directory`. Treat it as trusted code: what lies there is run."""
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
