"""What recorded intervals say: the traffic to simulate, and the mean request.

Arrivals are counted by bins as long as an interval; bursts of that length and longer are in the data, within a bin
arrivals are drawn as a Poisson process. A bin of which nothing was recorded is a gap, which readers of the trace close
by straight lines. The spread of prompts is not recorded: it stays as assumed.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from orchestration.allocator.errors import TelemetryError
from orchestration.allocator.service import Workload
from orchestration.allocator.telemetry import Interval
from orchestration.allocator.traces import RATES_HEADER

_LEAST_SHARE = 0.5
_LEAST_ENDED = 100


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What intervals come to."""

    workload: Workload
    hours: float
    """From the first to the last."""
    measured_share: float
    """Of that time."""
    requests: float
    late_share: float
    """Of first tokens, as lived through."""


def refit(intervals: Sequence[Interval], trace: Path) -> Fit:
    """Write the traffic of intervals to a trace of rates, and return what else they say; raises TelemetryError."""
    intervals = sorted(intervals, key=lambda one: one.time_s)
    ended = sum(one.answered for one in intervals)
    if ended < _LEAST_ENDED:
        raise TelemetryError(
            f"the telemetry holds {len(intervals)} intervals with {ended:.0f} answered requests; expected at least "
            f"{_LEAST_ENDED}; run servers with --allocator watch and --set allocator.telemetry=FILE for longer"
        )
    lengths = np.array([one.length_s for one in intervals])
    length_s = float(np.median(lengths))
    begins = np.array([one.time_s for one in intervals]) - lengths
    index = np.floor((begins - begins[0]) / length_s + 0.5).astype(np.int64)
    arrived = np.bincount(index, [one.arrived for one in intervals])
    seconds = np.bincount(index, lengths)
    measured = np.flatnonzero(seconds > 0)
    share = len(measured) / len(seconds)
    if share < _LEAST_SHARE:
        raise TelemetryError(
            f"the telemetry tells of {share:.0%} of the {len(seconds) * length_s / 3600:.1f} h that it spans; expected "
            f"at least {_LEAST_SHARE:.0%}; leave the older part away"
        )
    with trace.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(RATES_HEADER)
        for number in measured:
            writer.writerow(["fleet", f"{number * length_s:.3f}", f"{arrived[number] / seconds[number]:.6g}", 1])
    prompt = sum(one.prompt_tokens for one in intervals)
    cancelled_share = sum(one.cancelled for one in intervals) / ended
    first_tokens = sum(one.first_tokens for one in intervals)
    return Fit(
        workload=Workload(
            prompt_tokens=prompt / ended,
            # Of cancelled ones half was written, on average.
            output_tokens=sum(one.generated_tokens for one in intervals) / ended / (1 - cancelled_share / 2),
            cancelled_share=cancelled_share,
            reuse_share=min(sum(one.reused_tokens for one in intervals) / max(prompt, 1), 1.0),
        ),
        hours=len(seconds) * length_s / 3600,
        measured_share=share,
        requests=float(arrived.sum()),
        late_share=sum(one.late for one in intervals) / max(first_tokens, 1),
    )
