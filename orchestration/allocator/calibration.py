"""Step times from measurements: which ones make the simulation of the same requests take what they were seen to take.

Requests that are sent together form a burst. What the engine does with a burst, step by step, does not depend on how
long a step takes, so its times are linear in the step times, and least squares find them: of relative errors, since
short times matter as much as long ones. Only the sizes of chunks are tried one after the other. Knows no server.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from orchestration.allocator.errors import TelemetryError
from orchestration.allocator.request_simulator import follow
from orchestration.allocator.service import StepTimes

_LEAST_REQUESTS = 20
_CHUNKS = (32, 64, 128, 256, 512, 1024, 2048)
_TIMES = ("base_s", "row_s", "token_s", "pair_s", "overhead_s")
_MOST_ERROR = 0.3
"""A median beyond this says that the model is not this server's."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a burst, as it was measured."""

    prompt_tokens: float
    """That had to be computed."""
    output_tokens: float
    first_s: float
    """From its sending to its first token."""
    end_s: float


class Calibration(NamedTuple):
    """What was found, and how well it fits."""

    steps: StepTimes
    median_error: float
    """Of the times measured, relative."""
    requests: int


def calibrate(bursts: Sequence[Sequence[Sample]], *, num_slots: int) -> Calibration:
    """Return the step times of a replica with so many slots that answered `bursts`; raises TelemetryError."""
    # Which of those sent together came to the engine first is seen from their first tokens.
    bursts = [sorted(burst, key=lambda sample: sample.first_s) for burst in bursts]
    samples = [sample for burst in bursts for sample in burst]
    _check(bursts, samples)
    measured = np.array([[sample.first_s, sample.end_s] for sample in samples]).ravel()
    best, least = None, float("inf")
    for chunk in _CHUNKS:
        for beside in (size for size in _CHUNKS if size <= chunk):
            steps = StepTimes(num_slots=num_slots, chunk_tokens=chunk, beside_tokens=beside)
            work = _count_work(bursts, steps)
            found, residual = nnls(work / measured[:, None], np.ones(len(measured)))
            if residual < least:
                times = dict(zip(_TIMES, map(float, found), strict=True))
                error = float(np.median(np.abs(work @ found / measured - 1)))
                best = Calibration(msgspec.structs.replace(steps, **times), error, len(samples))
                least = residual
    assert best is not None, "some size was tried"
    if best.median_error > _MOST_ERROR:
        raise TelemetryError(
            f"the step times that fit best miss half of the measured times by more than {best.median_error:.0%}; "
            f"expected at most {_MOST_ERROR:.0%}; measure again while the machine does nothing else"
        )
    return best


def _count_work(bursts: Sequence[Sequence[Sample]], steps: StepTimes) -> NDArray[np.float64]:
    """Return [2 * requests, 5]: the work until each first token and each end, and one way there and back."""
    counted = []
    for burst in bursts:
        prompts, outputs = ([getattr(one, name) for one in burst] for name in ("prompt_tokens", "output_tokens"))
        course = follow(np.zeros(len(burst)), prompts, outputs, steps)
        counted.append(np.stack([course.first_work, course.end_work], axis=1).reshape(-1, 4))
    work = np.concatenate(counted)
    return np.concatenate([work, np.ones((len(work), 1))], axis=1)


def _check(bursts: Sequence[Sequence[Sample]], samples: Sequence[Sample]) -> None:
    if len(samples) < _LEAST_REQUESTS:
        raise TelemetryError(
            f"{len(samples)} requests were measured; expected at least {_LEAST_REQUESTS}; see in the server's log why "
            "it refuses them"
        )
    for sample in samples:
        if not (0 < sample.first_s <= sample.end_s < float("inf") and sample.output_tokens >= 1):
            raise TelemetryError(
                f"a request wrote {sample.output_tokens:g} tokens, the first after {sample.first_s:g} s and the last "
                f"after {sample.end_s:g} s; expected at least one token, and times in that order above 0"
            )
    sizes = [sample.prompt_tokens for sample in samples]
    if max(sizes) < 2 * max(min(sizes), 1) or max(map(len, bursts)) < 2:
        raise TelemetryError(
            f"the prompts measured have {min(sizes):g} to {max(sizes):g} tokens in bursts of at most "
            f"{max(map(len, bursts))}; expected sizes that differ twofold and bursts of 2 or more"
        )
