"""What one replica can do: the step-time model of continuous batching, and what requests ask of it.

A step that decodes `b` rows and prefills `p` prompt tokens takes `base_s + row_s * b + token_s * p`. From that and from
the mean request follow the rate that a replica sustains, and the time to the first token when nothing waits. Knows no
time series and no fleet.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

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
    """More for each prompt token."""
    overhead_s: float = 0.004
    """Of each request, outside the steps: parsing, tokenizing, the way back."""
    num_slots: int = 16
    """Sequences that run at once."""


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
    """Device time of a mean prompt."""
    prompt_scv: Any
    """Squared coefficient of variation of that time."""
    base_s: Any
    row_s: Any
    decode_tokens: Any
    """Tokens that a request has written, cancelled ones counted by half."""
    num_slots: Any
    overhead_s: Any


def describe_service(steps: StepTimes, workload: Workload) -> Service:
    """Join step times and workload; the capacity is where all slots decode all of the time that prefill leaves."""
    decode_tokens = workload.output_tokens * (1 - workload.cancelled_share / 2)
    prefill_s = workload.prompt_tokens * (1 - workload.reuse_share) * steps.token_s
    decode_s = decode_tokens * (steps.base_s + steps.row_s * steps.num_slots) / steps.num_slots
    return Service(
        capacity=1 / (prefill_s + decode_s),
        prefill_s=prefill_s,
        prompt_scv=workload.prompt_cv**2,
        base_s=steps.base_s,
        row_s=steps.row_s,
        decode_tokens=decode_tokens,
        num_slots=float(steps.num_slots),
        overhead_s=steps.overhead_s,
    )
