"""What one replica can do: the step-time model of continuous batching, and what requests ask of it.

A step that decodes `b` rows and prefills `p` prompt tokens takes `base_s + row_s * b + token_s * p`, and `pair_s` for
each pair of one of those tokens and one that stands before it, which is what attention costs. Prompts are
computed one at a time, in chunks: large ones while nothing else runs, small ones beside rows, so that those are not
held up. From that and from the mean request follows the rate that a replica sustains. Knows no time series, no fleet.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from orchestration.allocator.errors import TelemetryError


class StepTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The step-time model of one replica, in seconds.

    The defaults are assumed, not measured: they have the order of a small model on two CPU cores.
    """

    base_s: float = 0.004
    """A step that computes nothing much."""
    row_s: float = 0.0004
    """More for each sequence that decodes."""
    token_s: float = 0.00005
    """More for each prompt token,"""
    pair_s: float = 0.0
    """and for each token of that prompt before it."""
    overhead_s: float = 0.004
    """Of each request, outside the steps: parsing, tokenizing, the way back."""
    num_slots: int = 16
    """Sequences that run at once."""
    chunk_tokens: int = 256
    """Prompt tokens of a step at most, while no row decodes,"""
    beside_tokens: int = 64
    """and beside rows."""


def read_steps(path: Path | None) -> StepTimes:
    """Return the step times in a file, or the defaults; raises TelemetryError."""
    if path is None:
        return StepTimes()
    try:
        return msgspec.json.decode(path.read_bytes(), type=StepTimes)
    except (OSError, msgspec.MsgspecError) as error:
        raise TelemetryError(f"cannot read step times from {path}: {error}; expected JSON of step times") from None


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mean request."""

    prompt_tokens: float = 1500.0
    prompt_cv: float = 1.0
    """Standard deviation of the prompt over its mean."""
    output_tokens: float = 25.0
    cancelled_share: float = 0.2
    """Requests whose client goes on typing; on average half of their tokens were written by then."""
    reuse_share: float = 0.5
    """Prompt tokens whose KV is already there."""


class Service(NamedTuple):
    """What the simulator needs of a replica and its requests; plain numbers, or arrays over fleets."""

    capacity: Any
    """Requests per second that one replica sustains."""
    prefill_s: Any
    """Mean device time of a prompt's tokens, without the steps that they are part of."""
    chunks: Any
    """Steps that it takes alone,"""
    beside_chunks: Any
    """and beside rows."""
    prompt_scv: Any
    """Squared coefficient of variation of a prompt's time."""
    base_s: Any
    row_s: Any
    decode_tokens: Any
    """Tokens that a request has written, cancelled ones counted by half."""
    num_slots: Any
    overhead_s: Any


def describe_service(steps: StepTimes, workload: Workload) -> Service:
    """Join step times and workload.

    At capacity there is always a prompt to compute. It shares its steps with the rows of those before it; as many steps
    as a request writes tokens, if its prompt is that long, and the rest of the prompt goes alone.
    """
    decode_tokens = workload.output_tokens * (1 - workload.cancelled_share / 2)
    prompt_tokens = workload.prompt_tokens * (1 - workload.reuse_share)
    beside_chunks = prompt_tokens / steps.beside_tokens
    prefill_s, prompt_scv = _prefill(steps, workload)
    shared = max(min(beside_chunks, decode_tokens), decode_tokens / steps.num_slots)
    alone = max(prompt_tokens - shared * steps.beside_tokens, 0) / steps.chunk_tokens
    return Service(
        capacity=1 / (prefill_s + decode_tokens * steps.row_s + steps.base_s * (shared + alone)),
        prefill_s=prefill_s,
        chunks=prompt_tokens / steps.chunk_tokens + 0.5,
        beside_chunks=beside_chunks,
        prompt_scv=prompt_scv,
        base_s=steps.base_s,
        row_s=steps.row_s,
        decode_tokens=decode_tokens,
        num_slots=float(steps.num_slots),
        overhead_s=steps.overhead_s,
    )


def _prefill(steps: StepTimes, workload: Workload) -> tuple[float, float]:
    """Return mean and squared coefficient of variation of what a prompt's tokens take.

    That is a multiple of its length and one of its square; sizes of prompts are taken to have a gamma distribution.
    """
    linear = steps.token_s * (1 - workload.reuse_share)
    square = steps.pair_s * (1 - workload.reuse_share**2) / 2  # what is reused is still attended to
    first, second, third, fourth = np.cumprod(workload.prompt_tokens * (1 + workload.prompt_cv**2 * np.arange(4)))
    mean = linear * first + square * second
    mean_square = linear**2 * second + 2 * linear * square * third + square**2 * fourth
    return float(mean), max(float(mean_square / mean**2 - 1), 0.0) if mean else 0.0
