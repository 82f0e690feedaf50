"""`cloudcomplete allocator calibrate`, and the requests of `bench foretell`."""

import logging
from pathlib import Path

import numpy as np
import pytest

from cloudcomplete import foretelling
from loadtest.errors import RunError
from loadtest.timed_requests import TimedRequest
from orchestration.allocator.config import AllocatorConfig
from orchestration.allocator.loop import make_controller
from orchestration.allocator.request_simulator import follow
from orchestration.allocator.service import StepTimes, read_steps
from tests.cloudcomplete.shell import Shell

STEPS = StepTimes(base_s=0.003, row_s=0.0002, token_s=0.00003, pair_s=1e-8, overhead_s=0.004, num_slots=4)
ADDRESS = "127.0.0.1:9"


async def answer(address: str, **_: object) -> list[list[TimedRequest]]:
    """Answer as a server with `STEPS` would."""
    assert address == ADDRESS
    bursts = []
    for count in (1, 1, 1, 2, 4, 8) * 3:
        prompts, outputs = 40 + 150 * np.arange(count) * (len(bursts) % 3 + 1) + 300 * len(bursts), [9] * count
        course = follow(np.zeros(count), prompts, outputs, STEPS)
        bursts.append(
            [
                TimedRequest(at_s=0.0, computed_tokens=prompt, output_tokens=9, first_token_s=first_s, end_s=end_s)
                for prompt, first_s, end_s in zip(prompts.tolist(), course.first_s, course.end_s, strict=True)
            ]
        )
    return bursts


def test_calibrate_writes_step_times_that_the_allocator_reads(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(foretelling, "measure_bursts", answer)
    out = tmp_path / "steps.json"
    done = shell("allocator", "calibrate", "--server", ADDRESS, "--out", out, "--set", "engine.num_slots=4")
    assert (done.code, done.err) == (0, "")
    assert "half of the times measured within 0.0%" in done.out
    found = read_steps(out)
    for name in StepTimes.__struct_fields__:
        assert getattr(found, name) == pytest.approx(getattr(STEPS, name)), name
    with caplog.at_level(logging.WARNING):
        make_controller(AllocatorConfig(mode="watch", steps=str(out)), replicas=1)
    assert "assumed, not measured" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        ("soon", "CLOUDCOMPLETE_FORETELL_S is 'soon'; expected seconds above 0, such as 90"),
        ("0.1", r"requests would come in 0.1 s at 25% load; expected 20 to \d+: set CLOUDCOMPLETE_FORETELL_S to"),
    ],
)
def test_a_length_that_is_none_or_too_short_is_refused(
    seconds: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDCOMPLETE_FORETELL_S", seconds)
    monkeypatch.delenv("CLOUDCOMPLETE_ARRIVALS", raising=False)
    with pytest.raises(RunError, match=message):
        foretelling.choose_arrivals(STEPS, 0.25, foretelling.read_seconds())


def test_as_many_requests_come_as_the_load_says_and_all_within_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDCOMPLETE_ARRIVALS", raising=False)
    quarter, half = (foretelling.choose_arrivals(STEPS, load, 60.0) for load in (0.25, 0.5))
    assert len(half) == pytest.approx(2 * len(quarter), rel=0.05)
    assert [one.num_prompt_tokens for one in half[: len(quarter)]] == [one.num_prompt_tokens for one in quarter]
    for arrivals in (quarter, half):
        times_s = [one.at_s for one in arrivals]
        assert times_s == sorted(times_s)
        assert times_s[-1] == pytest.approx(60)
