"""`bench attention`: the attention paths side by side, layers alone, in the shapes that decode and prefill have."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.config import EngineConfig
from engine.loader import choose_engine_paths
from engine.model.attention import Attention, xla_attention
from engine.plan import resolve
from loadtest.benchmarks.shapes import SHAPE_110M

_LAYERS = 4
_CAPACITY = 1280
_ROUNDS = 7


class Case(NamedTuple):
    """Rows of `width` tokens on top of `context` tokens each."""

    name: str
    rows: int
    width: int
    context: int


_CASES = (
    Case("decode_b1_128", 1, 1, 128),
    Case("decode_b1_1k", 1, 1, 1024),
    Case("decode_b16_1k", 16, 1, 1024),
    Case("chunk_256_at_768", 1, 256, 768),
)


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Time both paths in turn; `xla_over_native`, how many times slower XLA is, is the median over the pairs."""
    config = EngineConfig()
    paths = choose_engine_paths(config, SHAPE_110M, resolve(config, SHAPE_110M))
    if paths.attention_name != "native":
        on_progress("the native path is not available here: nothing to compare")
        return {}, []
    headline, rows = {}, []
    for case in _CASES:
        runs = [_prepare(path, case) for path in (paths.attention, xla_attention)]
        pairs = [[run() for run in runs] for _ in range(_ROUNDS)]
        native_ms, xla_ms = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
        ratio = statistics.median(xla / fast for fast, xla in pairs)
        headline[f"{case.name}_xla_over_native"] = ratio
        rows.append({**case._asdict(), "layers": _LAYERS, "native_ms": native_ms, "xla_ms": xla_ms})
        on_progress(f"{case.name:>18}: native {native_ms:8.2f} ms, xla {xla_ms:8.2f} ms, {ratio:.1f} times")
    return headline, rows


def _prepare(path: Attention, case: Case) -> Callable[[], float]:
    """Compile a chain of attention layers; return a function that runs it once and returns its seconds."""
    rng = np.random.default_rng(0)
    heads, size = SHAPE_110M.num_heads, SHAPE_110M.head_size
    q = jnp.asarray(rng.standard_normal((case.rows * case.width, heads, size)), jnp.float32)
    slots = jnp.arange(case.rows, dtype=jnp.int32)
    starts = jnp.full((case.rows,), case.context, jnp.int32)

    def chain(
        q: jax.Array, kv: list[tuple[jax.Array, jax.Array]]
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        new = q[:, : SHAPE_110M.num_kv_heads]
        written = []
        for k, v in kv:
            q, k, v = path(q, new, new, slots, starts, k, v)
            written.append((k, v))
        return q, written

    shape = (case.rows, SHAPE_110M.num_kv_heads, _CAPACITY, size)
    state = [[(jnp.ones(shape), jnp.ones(shape)) for _ in range(_LAYERS)]]
    program = jax.jit(chain, donate_argnums=1).lower(q, state[0]).compile()

    def run() -> float:
        began = time.perf_counter()
        out, state[0] = program(q, state[0])
        out.block_until_ready()
        return time.perf_counter() - began

    run()
    return run
