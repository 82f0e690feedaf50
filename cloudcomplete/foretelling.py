"""`bench foretell`: is a real server as fast as the allocator's simulators foretell from a short calibration?

A new server of the starter model is calibrated as `cloudcomplete allocator calibrate` does it. Then requests come at
their own times, at a quarter and at half of what it sustains: as in the trace that CLOUDCOMPLETE_ARRIVALS names, else
in random bursts. The simulators get the times and the sizes of those requests, and the calibration. Nothing is refused
for being late (`engine.max_slowdown = 0`): which requests are let in is none of what is foretold. At the end it is
calibrated once more: where the capacity is another one then, the machine was, and no foretelling could be right.
CLOUDCOMPLETE_FORETELL_S: seconds of each load.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.arrivals import Arrival, read_arrivals
from loadtest.benchmarks.served import serving
from loadtest.calibration_load import measure_bursts
from loadtest.errors import RunError
from loadtest.timed_requests import TimedRequest, send
from orchestration.allocator.calibration import Calibration, Sample, calibrate
from orchestration.allocator.foretelling import Asked, foretell_by_fluid, foretell_by_requests
from orchestration.allocator.service import StepTimes, Workload, describe_service

_TRACE, _LENGTH = "CLOUDCOMPLETE_ARRIVALS", "CLOUDCOMPLETE_FORETELL_S"
_SECONDS = 90.0
_LOADS = (0.25, 0.5)
_CALIBRATION_SEED, _AFTER_SEED = 1, 100
"""Of the places asked about; those of the loads are others again."""
_NUM_SLOTS = 16
_SETTINGS = (f"engine.num_slots={_NUM_SLOTS}", "engine.max_slowdown=0")
_MOST_PROMPT, _MOST_OUTPUT = 1900, 64
_BURST_REQUESTS = 20
"""Mean number of requests in a random burst with the calm before it."""
_LEAST_REQUESTS, _MOST_REQUESTS = 20, 10_000


def calibrate_server(
    address: str, *, num_slots: int, on_progress: Callable[[str], None], seed: int = _CALIBRATION_SEED
) -> Calibration:
    """Return the step times of a server that does nothing else meanwhile; raises TelemetryError.

    `seed` chooses the places asked about; asked about the same ones again, a server knows the answers.
    """
    bursts = asyncio.run(measure_bursts(address, seed=seed, on_progress=on_progress))
    samples = [[_sample(request) for request in burst] for burst in bursts]
    return calibrate(samples, num_slots=num_slots)


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Calibrate, send the requests of each load, and set what they took against what was foretold."""
    seconds = read_seconds()
    rows: list[dict[str, Any]] = []
    headline: dict[str, float] = {}
    workload = Workload()
    with serving(_SETTINGS) as served:
        calibration = calibrate_server(served.address, num_slots=_NUM_SLOTS, on_progress=on_progress)
        steps = calibration.steps
        on_progress(f"{steps}, half of the times within {calibration.median_error:.1%}")
        for number, load in enumerate(_LOADS):
            arrivals = choose_arrivals(steps, load, seconds)
            requests = asyncio.run(send(served.address, arrivals, first=0, seed=_CALIBRATION_SEED + 1 + number))
            answered = [request for request in requests if not request.error]
            if not answered:
                raise RunError(f"none of {len(requests)} requests was answered; the first said: {requests[0].error}")
            asked = _describe(answered)
            workload = asked.workload
            row = _compare(asked, answered, steps) | {"unanswered": len(requests) - len(answered)}
            rows.append(row)
            on_progress(f"{row}")
            for name in ("mean", "p95"):
                for simulator in ("fluid", "requests"):
                    headline[f"{name}_over_foretold_by_{simulator}_at_{load:.0%}".replace("%", "")] = row[
                        f"{name}_over_{simulator}"
                    ]
        after = calibrate_server(served.address, num_slots=_NUM_SLOTS, on_progress=on_progress, seed=_AFTER_SEED).steps
        on_progress(f"{after} afterwards")
    before_per_s, after_per_s = (float(describe_service(one, workload).capacity) for one in (steps, after))
    headline["capacity_per_s"], headline["capacity_after_over_before"] = before_per_s, after_per_s / before_per_s
    for simulator in ("fluid", "requests"):
        errors = [abs(row[f"{name}_over_{simulator}"] - 1) for row in rows for name in ("mean", "p95")]
        headline[f"largest_error_by_{simulator}"] = max(errors)
    headline["unanswered"] = sum(row["unanswered"] for row in rows)
    return headline, rows


def _sample(request: TimedRequest) -> Sample:
    return Sample(
        prompt_tokens=request.computed_tokens,
        output_tokens=request.output_tokens,
        first_s=request.first_token_s,
        end_s=request.end_s,
    )


def _describe(requests: Sequence[TimedRequest]) -> Asked:
    """Return what the simulators may know of requests."""
    names = ("at_s", "computed_tokens", "output_tokens")
    return Asked(*(np.array([getattr(one, name) for one in requests], float) for name in names))


def _compare(asked: Asked, requests: Sequence[TimedRequest], steps: StepTimes) -> dict[str, Any]:
    """Set what requests took against what both simulators foretell of them."""
    first_s = np.array([one.first_token_s for one in requests])
    rate = len(requests) / float(asked.times_s[-1])
    row: dict[str, Any] = {
        "requests": len(requests),
        "load": rate / float(describe_service(steps, asked.workload).capacity),
        "prompt_tokens": asked.workload.prompt_tokens,
        "output_tokens": asked.workload.output_tokens,
        "mean_ms": float(first_s.mean()) * 1e3,
        "p95_ms": float(np.percentile(first_s, 95)) * 1e3,
        "first_text_mean_ms": float(np.mean([one.first_text_s for one in requests])) * 1e3,
    }
    for simulator, foretell in (("fluid", foretell_by_fluid), ("requests", foretell_by_requests)):
        foretold = foretell(asked, steps)
        for name, seconds in (("mean", foretold.mean_s), ("p95", foretold.p95_s)):
            row[f"{name}_{simulator}_ms"] = seconds * 1e3
            row[f"{name}_over_{simulator}"] = row[f"{name}_ms"] / row[f"{name}_{simulator}_ms"]
    return row


def choose_arrivals(steps: StepTimes, load: float, seconds: float) -> list[Arrival]:
    """Return requests for so many seconds at a share of the capacity; raises RunError.

    They are the first ones of the trace that is named, else random ones.
    """
    named = os.environ.get(_TRACE)
    arrivals = read_arrivals(Path(named)) if named else _draw()
    sizes = [(min(one.num_prompt_tokens, _MOST_PROMPT), min(one.num_output_tokens, _MOST_OUTPUT)) for one in arrivals]
    prompt, output = np.mean(sizes, axis=0)
    workload = Workload(prompt_tokens=prompt, output_tokens=output, cancelled_share=0.0, reuse_share=0.0)
    count = round(load * float(describe_service(steps, workload).capacity) * seconds)
    if not _LEAST_REQUESTS <= count <= len(arrivals):
        raise RunError(
            f"{count} requests would come in {seconds:g} s at {load:.0%} load; expected {_LEAST_REQUESTS} to "
            f"{len(arrivals)}: set {_LENGTH} to other seconds"
        )
    scale = seconds / max(arrivals[count - 1].at_s, 1e-3)
    return [Arrival(one.at_s * scale, *size) for one, size in zip(arrivals[:count], sizes, strict=False)]


def _draw() -> list[Arrival]:
    """Return requests in random bursts, three times as many a second as in the calm between two."""
    rng = np.random.default_rng(0)
    at_s, arrivals = 0.0, []
    for rate in [0.5, 1.5] * (_MOST_REQUESTS // _BURST_REQUESTS):
        end_s = at_s + rng.exponential(_BURST_REQUESTS / 2)
        while (at_s := at_s + rng.exponential(1 / rate)) < end_s:
            prompt = round(np.clip(rng.gamma(1.5, 600), 32, _MOST_PROMPT))
            arrivals.append(Arrival(at_s, prompt, int(rng.integers(4, 49))))
        at_s = end_s
    return arrivals


def read_seconds() -> float:
    """Return how long each load lasts; raises RunError."""
    named = os.environ.get(_LENGTH, str(_SECONDS))
    try:
        if (seconds := float(named)) > 0:
            return seconds
    except ValueError:
        pass
    raise RunError(f"{_LENGTH} is {named!r}; expected seconds above 0, such as 90")
