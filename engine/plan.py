"""What an engine will really use: deployment choices joined with the model's facts and this machine's.

Made once at start by `resolve`, logged once, never changed.
"""

import os

import jax
import jax.numpy as jnp
import msgspec

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.model.config import ModelConfig

_MAX_DEFAULT_CONTEXT = 8192


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved choices of one engine."""

    num_slots: int
    max_context: int
    """Most tokens of a sequence, prompt and completion together."""
    capacity: int
    """KV positions per slot: `max_context` and slack for the widest program, whose padding is written too."""
    row_buckets: tuple[int, ...]
    """Numbers of rows a decode program is compiled for, ascending."""
    chunk_buckets: tuple[int, ...]
    """Numbers of tokens a prefill program is compiled for, ascending."""
    dtype: str
    token_healing: bool
    """Whether the last token before the cursor is left to the model."""
    kv_bytes: int
    """Size of the resident KV."""


def resolve(config: EngineConfig, model: ModelConfig, *, available_bytes: int | None = None) -> EnginePlan:
    """Join choices and facts; raises ConfigError where they cannot hold together or the KV does not fit.

    `available_bytes` is the memory free for KV; measured when None.
    """
    for name, value, least in (
        ("num_slots", config.num_slots, 1),
        ("max_waiting", config.max_waiting, 0),
        ("prefill_chunk", config.prefill_chunk, 16),
        ("max_context", config.max_context, 0),
    ):
        if value < least:
            raise ConfigError(f"engine.{name} is {value}; expected at least {least}")
    if config.max_context > model.max_context:
        raise ConfigError(
            f"engine.max_context is {config.max_context:,} but the model was made for {model.max_context:,} tokens; "
            "lower it or load a model with a longer context"
        )
    max_context = config.max_context or min(model.max_context, _MAX_DEFAULT_CONTEXT)
    chunk = min(config.prefill_chunk, max_context)
    chunk_buckets = _buckets(16, chunk)
    capacity = -(-(max_context + chunk_buckets[-1]) // 64) * 64
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    slot_bytes = capacity * model.kv_bytes_per_token * jnp.dtype(dtype).itemsize // 4
    available = available_kv_bytes() if available_bytes is None else available_bytes
    if config.num_slots * slot_bytes > available:
        raise ConfigError(
            f"{config.num_slots} slots of {max_context:,} tokens need {config.num_slots * slot_bytes / 1e9:.1f} GB "
            f"for KV, {available / 1e9:.1f} GB are free; {available // slot_bytes} slots would fit: "
            "lower engine.num_slots or engine.max_context"
        )
    return EnginePlan(
        num_slots=config.num_slots,
        max_context=max_context,
        capacity=capacity,
        row_buckets=_buckets(1, config.num_slots),
        chunk_buckets=chunk_buckets,
        dtype=dtype,
        token_healing=config.token_healing,
        kv_bytes=config.num_slots * slot_bytes,
    )


def _buckets(first: int, last: int) -> tuple[int, ...]:
    """Return powers of two from `first`, the last one clipped to `last`."""
    buckets = [first]
    while buckets[-1] < last:
        buckets.append(min(buckets[-1] * 2, last))
    return tuple(buckets)


def available_kv_bytes() -> int:
    """Return the memory of the first device that is free now."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))
