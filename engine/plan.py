"""What an engine will really use: deployment choices joined with the model's facts and this machine's.

Made once at start by `resolve`, logged once, never changed.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.model.block_sparse import LEAST_KEPT, Fallback
from engine.model.config import ModelConfig
from engine.prefix_store import BLOCK_TOKENS
from engine.shapes import ShapeFamily, buckets
from engine.types import SparseMode

_MAX_DEFAULT_CONTEXT = 8192

_WIDTHS = (1, 8, 16)
"""Tokens per row: a decode, a draft, and the tail of a prompt that a keystroke leaves."""


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved choices of one engine."""

    num_slots: int
    max_context: int
    """Most tokens of a sequence, prompt and completion together."""
    capacity: int
    """KV positions per slot: `max_context` and slack for the widest program, whose padding is written too."""
    shapes: ShapeFamily
    """Every step shape, each of which is compiled ahead."""
    num_blocks: int
    """Blocks in the prefix store."""
    has_drafts: bool
    dtype: str
    token_healing: bool
    """Whether the last token before the cursor is left to the model."""
    reuses_kv: bool = True
    """Whether prompts begin with what earlier ones left."""
    sparse: SparseMode
    """Block-sparse attention for requests that do not say."""
    sparse_tokens: int
    """From so many prompt tokens on with `auto`."""
    sparse_blocks: int
    """Blocks kept of those that a block of queries sees."""
    sparse_problem: Fallback | None
    """Why there is none at all."""
    kv_bytes: int
    """Size of the resident KV and of the prefix store."""


def resolve(
    config: EngineConfig, model: ModelConfig, *, available_bytes: int | None = None, is_loaded: bool = True
) -> EnginePlan:
    """Join choices and facts; raises ConfigError where they cannot hold together or the KV does not fit.

    `available_bytes` is the memory that is free; measured when None. Not `is_loaded`: the weights have yet to fit, too.
    """
    for name, value, least in (
        ("num_slots", config.num_slots, 1),
        ("max_waiting", config.max_waiting, 0),
        ("prefill_chunk", config.prefill_chunk, 16),
        ("max_context", config.max_context, 0),
        ("prefix_store_mb", config.prefix_store_mb, 0),
        ("max_slowdown", config.max_slowdown, 0),
        ("unhurried_s", config.unhurried_s, 0),
        ("sparse_tokens", config.sparse_tokens, 1),
        ("sparse_blocks", config.sparse_blocks, LEAST_KEPT),
    ):
        if value < least:
            raise ConfigError(f"engine.{name} is {value}; expected at least {least}")
    if config.max_context > model.max_context:
        raise ConfigError(
            f"engine.max_context is {config.max_context:,} but the model was made for {model.max_context:,} tokens; "
            "lower it or load a model with a longer context"
        )
    max_context = config.max_context or min(model.max_context, _MAX_DEFAULT_CONTEXT)
    shapes = ShapeFamily(
        row_buckets=buckets(1, config.num_slots),
        width_buckets=_WIDTHS,
        chunk_buckets=buckets(2 * _WIDTHS[-1], min(config.prefill_chunk, max_context)),
    )
    capacity = -(-(max_context + max(shapes.chunk_buckets[-1], _WIDTHS[-1])) // 64) * 64
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    token_bytes = model.kv_bytes_per_token * jnp.dtype(dtype).itemsize // 4
    slot_bytes = capacity * token_bytes
    store_bytes = config.prefix_store_mb * 1_000_000
    weights_bytes = (
        0 if is_loaded else model.num_parameters * (1 if config.weights == "int8" else jnp.dtype(dtype).itemsize)
    )
    free_bytes = available_kv_bytes() if available_bytes is None else available_bytes
    available = max(0, free_bytes - weights_bytes)
    if config.num_slots * slot_bytes + store_bytes > available:
        raise ConfigError(
            f"{config.num_slots} slots of {max_context:,} tokens need {config.num_slots * slot_bytes / 1e9:.1f} GB "
            f"for KV and the prefix store {store_bytes / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
            f"{f' beside {weights_bytes / 1e9:.1f} GB of weights' if weights_bytes else ''}; "
            f"{max(0, available - store_bytes) // slot_bytes} slots would fit: "
            "lower engine.num_slots, engine.max_context or engine.prefix_store_mb"
        )
    num_blocks = store_bytes // (BLOCK_TOKENS * token_bytes)
    return EnginePlan(
        num_slots=config.num_slots,
        max_context=max_context,
        capacity=capacity,
        shapes=shapes,
        num_blocks=num_blocks,
        has_drafts=config.drafts,
        dtype=dtype,
        token_healing=config.token_healing,
        reuses_kv=config.reuse_kv,
        sparse=config.sparse,
        sparse_tokens=config.sparse_tokens,
        sparse_blocks=config.sparse_blocks,
        sparse_problem="off" if config.sparse == "off" else "window" if any(model.windows) else None,
        kv_bytes=config.num_slots * slot_bytes + num_blocks * BLOCK_TOKENS * token_bytes,
    )


def available_kv_bytes() -> int:
    """Return the memory of the first device that is free now."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _available_host_bytes()
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))


def _available_host_bytes() -> int:
    """Return what can be allocated without swapping: files that the system keeps in memory make room when asked to."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
