import re

import msgspec
import numpy as np
import pytest

from orchestration.allocator.calibration import Sample, calibrate
from orchestration.allocator.errors import TelemetryError
from orchestration.allocator.request_simulator import follow
from orchestration.allocator.service import StepTimes

STEPS = StepTimes(
    base_s=0.0021,
    row_s=0.00013,
    token_s=0.000041,
    pair_s=3e-8,
    overhead_s=0.0057,
    chunk_tokens=512,
    beside_tokens=128,
    num_slots=6,
)


def measure(steps: StepTimes, *, noise: float = 0.0) -> list[list[Sample]]:
    """Bursts that a replica with these step times answers; those of 8 find six slots."""
    rng = np.random.default_rng(3)
    bursts = []
    for count in (1, 1, 1, 1, 2, 4, 8, 8):
        for _ in range(4):
            prompts, outputs = rng.integers(30, 1900, count), rng.integers(1, 60, count)
            course = follow(np.zeros(count), prompts, outputs, steps)
            factors = 1 + noise * rng.standard_normal((2, count))
            first_s, end_s = np.sort(factors * [course.first_s, course.end_s], axis=0)
            columns = zip(prompts, outputs, first_s, end_s, strict=True)
            names = Sample.__struct_fields__
            bursts.append([Sample(**dict(zip(names, map(float, values), strict=True))) for values in columns])
    return bursts


def test_step_times_that_were_simulated_are_found_again() -> None:
    found = calibrate(measure(STEPS), num_slots=6)
    assert found.requests == 104
    assert found.median_error < 1e-6
    for name in StepTimes.__struct_fields__:
        assert getattr(found.steps, name) == pytest.approx(getattr(STEPS, name), rel=1e-6), name


def test_noise_moves_them_little() -> None:
    found = calibrate(measure(STEPS, noise=0.05), num_slots=6)
    assert 0.01 < found.median_error < 0.06
    assert (found.steps.chunk_tokens, found.steps.beside_tokens) == (512, 128)
    for name in ("base_s", "row_s", "token_s", "pair_s", "overhead_s"):
        assert getattr(found.steps, name) == pytest.approx(getattr(STEPS, name), rel=0.2), name


def test_measurements_that_cannot_be_explained_or_do_not_suffice_are_refused() -> None:
    bursts = measure(STEPS)
    with pytest.raises(TelemetryError, match="19 requests were measured; expected at least 20"):
        calibrate([[burst[0]] for burst in bursts[:19]], num_slots=6)
    with pytest.raises(TelemetryError, match=re.escape("in bursts of at most 1; expected sizes that differ twofold")):
        calibrate([[burst[0]] for burst in bursts], num_slots=6)
    late = [[msgspec.structs.replace(one, first_s=2.0, end_s=1.0) for one in burst] for burst in bursts]
    with pytest.raises(TelemetryError, match="the first after 2 s and the last after 1 s; expected at least one token"):
        calibrate(late, num_slots=6)
    rng = np.random.default_rng(0)
    wild = [
        [msgspec.structs.replace(one, first_s=one.first_s * factor, end_s=one.end_s * factor) for one in burst]
        for burst, factor in zip(bursts, np.exp(2 * rng.standard_normal(len(bursts))), strict=True)
    ]
    with pytest.raises(TelemetryError, match=r"miss half of the measured times by more than \d+%; expected at"):
        calibrate(wild, num_slots=6)
