"""`bench sparse`: block-sparse attention beside dense attention, on prompts of up to 16,384 tokens of the 110 M shape.

One prompt is computed twice, chunk by chunk in turn: densely in one slot, sparsely in another. What a shorter prompt
takes is the sum of the first chunks, since a chunk's time depends on what lies before it alone. Attention alone is
timed in the same way, in one layer.
"""

import itertools
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from engine.config import EngineConfig
from engine.loader import STARTER, choose_engine_paths, make_programs
from engine.model.attention import streamed_attention, xla_attention
from engine.model.block_sparse import BLOCK, Selection, SparseAttention, xla_sparse_attention
from engine.paths import Paths
from engine.plan import EnginePlan, resolve
from engine.runner import DeviceRunner, Row
from engine.tokenizer import Tokenizer
from engine.types import SamplingParams
from engine.weights.load import random_model
from loadtest.benchmarks.shapes import SHAPE_110M, real_code

_LENGTHS = (2048, 4096, 8192, 16_384)
_CHUNK = 256
_CLEARLY = 0.95
_SHAPE = msgspec.structs.replace(SHAPE_110M, max_context=_LENGTHS[-1] + _CHUNK)


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Time both; `crossover_tokens` is the length from which a sparse prompt takes at most 0.95 of a dense one."""
    config = EngineConfig(num_slots=2, prefix_store_mb=0, prefill_chunk=_CHUNK, drafts=False)
    config = msgspec.structs.replace(config, max_context=_SHAPE.max_context)
    plan = resolve(config, _SHAPE)
    paths = choose_engine_paths(config, _SHAPE, plan)
    assert paths.sparse_attention is not None, "the shape has no windows of its own"
    attention = _time_attention(paths.sparse_attention, plan)
    on_progress(f"attention alone at {_LENGTHS[-1]:,}: sparse takes {_ratio(attention, _LENGTHS[-1]):.3f} of dense")
    prefill, kept, mass = _time_prefill(plan, paths, on_progress)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    headline = {"crossover_tokens": float(crossover(prefill)), "peak_memory_mb": peak_mb}
    rows: list[dict[str, Any]] = []
    for length in _LENGTHS:
        name = f"{length // 1024}k"
        headline[f"attention_{name}_over_dense"] = _ratio(attention, length)
        headline[f"prefill_{name}_over_dense"] = _ratio(prefill, length)
        seconds = prefill[:, : length // _CHUNK].sum(1)
        rows.append({
            "prompt_tokens": length,
            "dense_s": float(seconds[0]),
            "sparse_s": float(seconds[1]),
            "kept_blocks": kept[length // _CHUNK - 1],
            "kept_mass": mass[length // _CHUNK - 1],
        })  # fmt: skip
        on_progress(
            f"prompt of {length:>6,}: dense {seconds[0]:6.1f} s, sparse {seconds[1]:6.1f} s, "
            f"{headline[f'prefill_{name}_over_dense']:.3f}; {kept[length // _CHUNK - 1]:.2f} of the blocks kept"
        )
    headline["kv_mb"] = plan.kv_bytes / 1e6
    for name, size in _working_memory(plan).items():
        headline[f"{name}_working_mb"] = size / 1e6
    return headline, rows


def _ratio(seconds: np.ndarray, length: int) -> float:
    dense, sparse = seconds[:, : length // _CHUNK].sum(1)
    return float(sparse / dense)


def crossover(seconds: np.ndarray) -> int:
    """Return the shortest prompt from which on, at every length, sparse is clearly faster; 0: there is none."""
    dense, sparse = seconds.cumsum(1)
    is_faster = sparse <= _CLEARLY * dense
    slow = np.flatnonzero(~is_faster)
    first = int(slow[-1]) + 1 if len(slow) else 0
    return (first + 1) * _CHUNK if first < len(is_faster) else 0


def _time_prefill(
    plan: EnginePlan, paths: Paths, on_progress: Callable[[str], None]
) -> tuple[np.ndarray, list[float], list[float]]:
    """Return seconds `[dense or sparse, chunks]`, and the shares of blocks and of attention kept up to each chunk."""
    tokenizer = Tokenizer.from_directory(STARTER)
    loaded = random_model(_SHAPE, seed=0, dtype=jnp.dtype(plan.dtype), hold=paths.hold)
    programs = make_programs(loaded, tokenizer, plan, paths)
    runner = DeviceRunner(config=_SHAPE, plan=plan, programs=programs)
    tokens = list(itertools.islice(itertools.cycle(tokenizer.encode(real_code())), _LENGTHS[-1]))
    shape = plan.shapes.for_chunk(_CHUNK)
    runner.run(shape, [], Row(0, 0, tokens[:_CHUNK], SamplingParams(), 0))  # compiles
    seconds, totals = np.zeros((2, _LENGTHS[-1] // _CHUNK)), np.zeros(4)
    kept, mass = [], []
    for i, start in enumerate(range(0, _LENGTHS[-1], _CHUNK)):
        for slot, focus in enumerate((None, (start, start))):
            row = Row(slot, start, tokens[start : start + _CHUNK], SamplingParams(), 0, focus=focus)
            began = time.perf_counter()
            runner.run(shape, [], row)
            seconds[slot, i] = time.perf_counter() - began
        totals += runner.last_report[:4]
        kept.append(float(totals[0] / totals[1]))
        mass.append(float(totals[2] / totals[3]))
        if (start + _CHUNK) % 2048 == 0:
            on_progress(
                f"{start + _CHUNK:,} tokens: this chunk {seconds[0, i]:.2f} s dense, {seconds[1, i]:.2f} s sparse"
            )
    return seconds, kept, mass


def _time_attention(path: SparseAttention, plan: EnginePlan) -> np.ndarray:
    """Return the seconds of one layer's attention `[dense or sparse, chunks]`."""
    rng = np.random.default_rng(0)
    heads, size = _SHAPE.num_heads, _SHAPE.head_size
    q, new = (jnp.asarray(rng.standard_normal((_CHUNK, heads, size)), plan.dtype) for _ in range(2))
    k, v = (jnp.asarray(rng.standard_normal((1, heads, plan.capacity, size)), plan.dtype) for _ in range(2))

    def attend(start: jax.Array, selection: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        slots = jnp.zeros(1, jnp.int32)
        return path(q, new, new, slots, start, k, v, selection, num_kept=plan.sparse_blocks)

    program = jax.jit(attend, donate_argnums=(2, 3))
    seconds = np.zeros((2, _LENGTHS[-1] // _CHUNK))
    for i in (-1, *range(seconds.shape[1])):  # once to compile
        for is_sparse in (0, 1):
            selection = jnp.array(Selection(is_sparse, _CHUNK, 0, 0, plan.sparse_blocks), jnp.int32)
            start = jnp.array([max(i, 0) * _CHUNK], jnp.int32)
            began = time.perf_counter()
            out, k, v, _ = program(start, selection, k, v)
            out.block_until_ready()
            seconds[is_sparse, max(i, 0)] = time.perf_counter() - began
    return seconds


def _working_memory(plan: EnginePlan) -> dict[str, float]:
    """Return the bytes that XLA's paths need beside arguments and results, for one layer's chunk at full capacity."""
    dtype, size = jnp.dtype(plan.dtype), _SHAPE.head_size
    new = jax.ShapeDtypeStruct((_CHUNK, _SHAPE.num_heads, size), dtype)
    kv = jax.ShapeDtypeStruct((1, _SHAPE.num_kv_heads, plan.capacity // BLOCK * BLOCK, size), dtype)
    one, told = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((8,), jnp.int32)
    arguments = (new, new, new, one, one, kv, kv)

    def sparse(*given: jax.Array) -> tuple[jax.Array, ...]:
        return xla_sparse_attention(*given, num_kept=plan.sparse_blocks)

    paths: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]
    paths = {"obvious": (xla_attention, arguments), "streamed": (streamed_attention, arguments)}
    paths |= {"sparse": (sparse, (*arguments, told))}
    sizes = {}
    for name, (path, given) in paths.items():
        memory = jax.jit(path, donate_argnums=(5, 6)).lower(*given).compile().memory_analysis()
        assert memory is not None, "every backend that we know tells"
        sizes[name] = float(memory.temp_size_in_bytes)
    return sizes
