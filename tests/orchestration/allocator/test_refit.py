from pathlib import Path

import msgspec
import numpy as np
import pytest

from orchestration.allocator.errors import TelemetryError
from orchestration.allocator.refit import refit
from orchestration.allocator.telemetry import Counts, Interval
from orchestration.allocator.traces import read_trace

ZERO = dict.fromkeys(Counts.__struct_fields__, 0.0)


def interval(number: int, arrived: float) -> Interval:
    ended = {"answered": arrived, "cancelled": arrived / 4, "first_tokens": arrived, "late": arrived / 10}
    tokens = {"prompt_tokens": 1000 * arrived, "reused_tokens": 750 * arrived, "generated_tokens": 21 * arrived}
    return Interval(time_s=1e9 + 10.0 * (number + 1), length_s=10.0, **ZERO | ended | tokens | {"arrived": arrived})


def test_traffic_and_the_mean_request_are_what_was_recorded_in_any_order(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(30, 400)
    intervals = [interval(number, float(count)) for number, count in enumerate(counts)]
    fit = refit(intervals[::-1], tmp_path / "trace.csv")
    workload = fit.workload
    assert (workload.prompt_tokens, workload.cancelled_share, workload.reuse_share) == (1000, 0.25, 0.75)
    assert workload.output_tokens == pytest.approx(24)
    assert (fit.measured_share, fit.requests, fit.hours) == (1, counts.sum(), pytest.approx(400 / 360))
    assert fit.late_share == pytest.approx(0.1)
    trace = read_trace(tmp_path / "trace.csv")
    assert trace.window_s == 10
    np.testing.assert_allclose(trace.rates, counts / 10, rtol=1e-5)


def test_gaps_are_closed_by_lines_and_too_many_are_refused(tmp_path: Path) -> None:
    intervals = [interval(number, 30.0) for number in range(200) if not 50 <= number < 80]
    intervals[50] = msgspec.structs.replace(intervals[50], arrived=60.0)  # the first after the gap
    fit = refit(intervals, tmp_path / "trace.csv")
    assert fit.measured_share == pytest.approx(170 / 200)
    rates = read_trace(tmp_path / "trace.csv").rates
    assert len(rates) == 200
    assert rates[64] == pytest.approx(3 + 3 * 15 / 31, rel=0.01)
    with pytest.raises(TelemetryError, match=r"tells of 40% of the 0.6 h that it spans; expected at least 50%"):
        refit([interval(number, 30.0) for number in (*range(40), *range(160, 200))], tmp_path / "trace.csv")


def test_too_little_telemetry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match=r"holds 0 intervals with 0 answered requests; expected at least 100"):
        refit([], tmp_path / "trace.csv")
