"""The fluid against its oracle, on the same requests."""

import msgspec
import numpy as np
import pytest

from orchestration.allocator.foretelling import Asked, foretell_by_fluid, foretell_by_requests
from orchestration.allocator.request_simulator import follow
from orchestration.allocator.service import StepTimes, Workload, describe_service

STEPS = StepTimes()
WORKLOAD = Workload(cancelled_share=0)


def ask(load: float, steps: StepTimes, *, seconds: float, bursts: bool = False) -> Asked:
    """Requests at a share of the capacity; in bursts of 4 s at 1.8 times the rate, and as long at a fifth of it."""
    rng = np.random.default_rng(7)
    rate = load * float(describe_service(steps, WORKLOAD).capacity)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    if bursts:
        times = np.interp(times % 8, [0, 7.2, 8], [0, 4, 8]) + times // 8 * 8
    prompts = rng.exponential(WORKLOAD.prompt_tokens * (1 - WORKLOAD.reuse_share), len(times))
    return Asked(times, prompts, np.full(len(times), WORKLOAD.output_tokens))


@pytest.mark.parametrize(
    ("load", "chunks", "bursts"),
    [(0.2, (256, 64), False), (0.6, (256, 64), False), (0.5, (2048, 512), False), (0.3, (256, 64), True)],
)
def test_the_fluid_foretells_what_following_every_request_does(
    load: float, chunks: tuple[int, int], bursts: bool
) -> None:
    steps = msgspec.structs.replace(STEPS, chunk_tokens=chunks[0], beside_tokens=chunks[1])
    asked = ask(load, steps, seconds=2000, bursts=bursts)
    exact, fluid = foretell_by_requests(asked, steps), foretell_by_fluid(asked, steps)
    assert fluid.mean_s == pytest.approx(exact.mean_s, rel=0.15)
    assert fluid.p95_s == pytest.approx(exact.p95_s, rel=0.15)


def test_more_than_the_capacity_makes_a_queue_that_grows_and_less_does_not() -> None:
    growth = {}
    for load in (0.85, 1.2):
        asked = ask(load, STEPS, seconds=600)
        first_s = follow(asked.times_s, asked.prompts, asked.outputs, STEPS).first_s
        growth[load] = first_s[-500:].mean() / first_s[500:1000].mean()
    assert growth[0.85] < 2 < growth[1.2]


def test_prompts_of_one_length_do_not_vary() -> None:
    for length in (150, 250, 300, 500, 1000):
        service = describe_service(STEPS, msgspec.structs.replace(WORKLOAD, prompt_tokens=float(length), prompt_cv=0.0))
        assert 0 <= service.prompt_scv < 1e-12, "no NaN comes of its root"
