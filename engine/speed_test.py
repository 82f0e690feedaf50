"""Is a fast path as fast as XLA's on this machine?

Right numbers do not make a path worth choosing: vectors wider than a processor's once made one ten times slower, and
nothing said so. Both are timed in turn, so that what else the machine does meets both, at the sizes of a decode and of
a chunk, a few runs of milliseconds each. Does not know what follows from a verdict (`paths.py`), nor where it is kept
(`self_test.py`).
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.model.attention import Attention
from engine.model.block_sparse import Selection, SparseAttention
from engine.model.matrix import Form, hold, multiply

LIMIT = 2.0
"""A path that takes more than so many times what XLA takes is left."""
_RUNS = 5
_TRIES = 3
"""Only a path that is too slow every time is left: somebody else's work must not decide for good."""
_HEADS, _KV_HEADS, _CONTEXT, _CHUNK = 8, 2, 1024, 128
_LEAST_SIDE, _MOST_WEIGHTS = 512, 1 << 21
"""Matrices of tiny models are timed as if they were larger, and those of large ones in part."""


class Race(NamedTuple):
    """Two calls that do the same."""

    name: str
    path: Callable[[], object]
    reference: Callable[[], object]


class Times(NamedTuple):
    """Median seconds of both."""

    name: str
    path_s: float
    reference_s: float


def run_races(races: list[Race], *, clock: Callable[[], float] = time.perf_counter) -> str | None:
    """Return None, or why the path is too slow; every call has been warmed up before its first timed run."""
    problem: str | None = None
    for race in races:
        race.path()
        race.reference()
    for _ in range(_TRIES):
        problem = judge([_time(race, clock) for race in races])
        if problem is None:
            break
    return problem


def judge(times: list[Times]) -> str | None:
    """Compare by the mean ratio, so that a gain in one case makes up for an equal loss in another."""
    ratios = [one.path_s / one.reference_s for one in times]
    ratio = statistics.geometric_mean(ratios)
    if ratio <= LIMIT:
        return None
    worst = times[ratios.index(max(ratios))]
    return (
        f"it takes {ratio:.1f} times as long as XLA, expected at most {LIMIT} times ({worst.name}: "
        f"{worst.path_s * 1e3:.2f} ms, {worst.reference_s * 1e3:.2f} ms on XLA)"
    )


def race_attention(path: Attention, reference: Attention, *, head_size: int) -> str | None:
    """Race two paths of dense attention: four decodes, and a chunk, on a context of a thousand tokens."""
    cases = (("decode", [0, 1, 2, 3], 1), ("chunk", [0], _CHUNK))
    return run_races(
        [
            Race(name, *(_attention_call(one, slots, width, head_size) for one in (path, reference)))
            for name, slots, width in cases
        ]
    )


def race_sparse_attention(
    path: SparseAttention, reference: SparseAttention, *, head_size: int, dtype: str
) -> str | None:
    """Race two paths of block-sparse attention: a chunk that keeps a quarter of the blocks."""
    width, capacity, num_kept = 256, 4096, 16
    selection = jnp.array(Selection(1, width, num_kept=num_kept), jnp.int32)
    calls = (
        _call(partial(one, num_kept=num_kept), [0], width, capacity, head_size, dtype, selection)
        for one in (path, reference)
    )
    return run_races([Race("sparse chunk", *calls)])


def race_products(form: Form, reference: Form, sizes: tuple[int, int]) -> str | None:
    """Race the products of two forms of one matrix `(I, O)`: of a decode's row, and of a chunk's rows."""
    num_inputs = max(sizes[0], _LEAST_SIDE)
    num_outputs = max(_LEAST_SIDE, min(sizes[1], _MOST_WEIGHTS // num_inputs))
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.standard_normal((num_inputs, num_outputs)), jnp.float32)
    program = jax.jit(multiply)

    def call(form: Form, rows: int) -> Callable[[], object]:
        matrix = hold(weights, form)
        x = jnp.asarray(rng.standard_normal((rows, num_inputs)), jnp.float32)
        return lambda: program(x, matrix).block_until_ready()

    return run_races([Race(f"{rows} rows", *(call(one, rows) for one in (form, reference))) for rows in (1, 64)])


def _time(race: Race, clock: Callable[[], float]) -> Times:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_RUNS):
        for run, taken in zip((race.path, race.reference), seconds, strict=True):
            began = clock()
            run()
            taken.append(clock() - began)
    return Times(race.name, *map(statistics.median, seconds))


def _attention_call(path: Attention, slots: list[int], width: int, head_size: int) -> Callable[[], object]:
    return _call(path, slots, width, _CONTEXT + 64, head_size, "float32")


def _call(
    path: Callable[..., Any],
    slots: list[int],
    width: int,
    capacity: int,
    head_size: int,
    dtype: str,
    *others: jax.Array,
) -> Callable[[], object]:
    """Return a call of attention at the end of the context; the KV is updated in place, as serving does."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), dtype)

    num_tokens = len(slots) * width
    q, k_new, v_new = (floats(num_tokens, heads, head_size) for heads in (_HEADS, _KV_HEADS, _KV_HEADS))
    kv = [floats(len(slots), _KV_HEADS, capacity, head_size) for _ in range(2)]
    places = (jnp.array(slots, jnp.int32), jnp.full(len(slots), capacity - 64 - width, jnp.int32))
    program = jax.jit(path, donate_argnums=(5, 6))

    def call() -> None:
        out, kv[0], kv[1], *_ = program(q, k_new, v_new, *places, *kv, *others)
        jax.block_until_ready((out, kv))

    return call
