"""The family of compiled programs: one per (rows, width), compiled ahead of the first request.

A program is a function of the weights, the resident KV and one batch of rows; it returns the KV (in place) and one
token a row. `width` is 1 for decode and a chunk bucket for prefill. Nothing here decides what runs.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from engine.model.attention import Attention
from engine.model.config import ModelConfig
from engine.model.transformer import rope_table
from engine.plan import EnginePlan
from engine.sampler import NEVER, logit_gap, sample, unpack_allowed

KVCache = list[tuple[jax.Array, jax.Array]]
"""Per layer, keys and values `[slots, K, S, H]`."""


class Batch(NamedTuple):
    """The plain arrays of one run, on the host before and on the device within; a row with a negative slot is empty."""

    tokens: Any
    """int32 `[B, T]`"""
    slots: Any
    """int32 `[B]`"""
    starts: Any
    """int32 `[B]`: position of each row's first token."""
    counts: Any
    """int32 `[B]`: how many of the row's tokens are real; the rest is padding, written to KV and overwritten later."""
    temperature: Any
    """float32 `[B]`"""
    top_k: Any
    """int32 `[B]`"""
    top_p: Any
    """float32 `[B]`"""
    seed: Any
    """uint32 `[B]`"""
    num_generated: Any
    """int32 `[B]`: how many tokens the row has produced; with the seed it decides the noise."""
    allowed: Any
    """uint8 `[B, V/8]`: one bit per token that may come next."""


def batch_shape(rows: int, width: int, vocab_size: int) -> Batch:
    """Return the shapes and types of a batch."""
    ints = jax.ShapeDtypeStruct((rows,), jnp.int32)
    floats = jax.ShapeDtypeStruct((rows,), jnp.float32)
    return Batch(
        tokens=jax.ShapeDtypeStruct((rows, width), jnp.int32),
        slots=ints,
        starts=ints,
        counts=ints,
        temperature=floats,
        top_k=ints,
        top_p=floats,
        seed=jax.ShapeDtypeStruct((rows,), jnp.uint32),
        num_generated=ints,
        allowed=jax.ShapeDtypeStruct((rows, -(-vocab_size // 8)), jnp.uint8),
    )


def make_kv(config: ModelConfig, plan: EnginePlan) -> KVCache:
    """Allocate the resident KV, zeroed."""
    shape = (plan.num_slots, config.num_kv_heads, plan.capacity, config.head_size)
    return [(jnp.zeros(shape, plan.dtype), jnp.zeros(shape, plan.dtype)) for _ in range(config.num_layers)]


class Programs:
    """Compiles, keeps and counts the programs of one engine."""

    def __init__(
        self, graphdef: nnx.GraphDef[Any], weights: Any, config: ModelConfig, plan: EnginePlan, attention: Attention
    ) -> None:
        self._config, self._plan = config, plan
        self._graphdef, self._attention = graphdef, attention
        leaves, self._treedef = jax.tree.flatten((weights, rope_table(config, plan.capacity)))
        self.leaves = [jax.device_put(leaf) for leaf in leaves]
        """Weights and rotary table: the first argument of every program."""
        self._leaf_shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        self._compiled: dict[tuple[int, int], Callable[..., tuple[KVCache, jax.Array]]] = {}
        self._lock = threading.Lock()
        self.num_recompiles = 0
        """Programs compiled when first needed instead of ahead; a defect when it is not 0."""

    def shapes(self) -> list[tuple[int, int]]:
        """Return (rows, width) of every program a scheduler may ask for."""
        return [(rows, 1) for rows in self._plan.row_buckets] + [(1, width) for width in self._plan.chunk_buckets]

    def compile_all(self, on_progress: Callable[[str], None]) -> None:
        """Compile every program; lowering holds the interpreter, compiling does not, so threads share the work."""
        shapes = self.shapes()
        lowered = [self._lower(*shape) for shape in shapes]
        with ThreadPoolExecutor(max_workers=4, thread_name_prefix="compile") as pool:
            compiled = pool.map(lambda program: program.compile(), lowered)
            for number, (shape, program) in enumerate(zip(shapes, compiled, strict=True), start=1):
                self._compiled[shape] = program
                on_progress(f"compiled {number} of {len(shapes)} programs")

    def get(self, rows: int, width: int) -> Callable[..., tuple[KVCache, jax.Array]]:
        """Return the program of this shape: `(leaves, kv, batch) -> (kv, int32 [2, rows])`, tokens and gaps."""
        program = self._compiled.get((rows, width))
        if program is None:
            with self._lock:
                self.num_recompiles += 1
                program = self._compiled[rows, width] = self._lower(rows, width).compile()
        return program

    def _lower(self, rows: int, width: int) -> jax.stages.Lowered:
        shape = (self._plan.num_slots, self._config.num_kv_heads, self._plan.capacity, self._config.head_size)
        layer = jax.ShapeDtypeStruct(shape, jnp.dtype(self._plan.dtype))
        kv = [(layer, layer)] * self._config.num_layers
        batch = batch_shape(rows, width, self._config.vocab_size)
        return jax.jit(self._step, donate_argnums=1).lower(self._leaf_shapes, kv, batch)

    def _step(self, leaves: list[jax.Array], kv: KVCache, batch: Batch) -> tuple[KVCache, jax.Array]:
        """Embed, run the layers over all rows' tokens at once, score each row's last real token, choose."""
        weights, rope = jax.tree.unflatten(self._treedef, leaves)
        model = nnx.merge(self._graphdef, weights)
        rows, width = batch.tokens.shape
        positions = (batch.starts[:, None] + jnp.arange(width)).reshape(-1)
        kv = list(kv)

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            window = self._config.window_of(layer)
            out, *written = self._attention(q, k, v, batch.slots, batch.starts, *kv[layer], window=window)
            kv[layer] = (written[0], written[1])
            return out

        hidden = model(batch.tokens.reshape(-1), positions, attend, rope=rope).reshape(rows, width, -1)
        last = jnp.take_along_axis(hidden, jnp.maximum(batch.counts - 1, 0)[:, None, None], axis=1)[:, 0]
        allowed = unpack_allowed(batch.allowed, self._config.vocab_size)
        logits = jnp.where(allowed, model.logits(last), NEVER)
        tokens = sample(logits, batch.temperature, batch.top_k, batch.top_p, batch.seed, batch.num_generated)
        # One array to fetch instead of two.
        gap_bits = jax.lax.bitcast_convert_type(logit_gap(logits), jnp.int32)
        return kv, jnp.stack([tokens, gap_bits])


def keep_compiled_programs(directory: Path) -> None:
    """Let JAX keep every compiled program in `directory`. Treat it as trusted code: what lies there is run."""
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
