"""Requests at given times, and the calibration's bursts of them, against a server whose answers can be computed."""

import asyncio
from collections.abc import Iterator

import pytest

from loadtest.arrivals import Arrival
from loadtest.calibration_load import measure_bursts
from loadtest.timed_requests import send
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    engine = CountingEngine(num_slots=16)
    yield engine
    engine.close(timeout_s=0)


def test_each_request_comes_at_its_time_from_a_place_of_its_own_and_tells_what_it_took(engine: CountingEngine) -> None:
    arrivals = [Arrival(0.0, 30, 3), Arrival(0.1, 60, 1_000_000), Arrival(0.2, 30, 5)]
    with InProcessServer(engine) as server:
        first, refused, third = asyncio.run(send(server.address, arrivals, first=7, seed=1))
    assert len({request.before for request in engine.seen}) == 2
    assert (first.output_tokens, third.output_tokens) == (3, 5)
    assert first.computed_tokens == len(engine.seen[0].before) + len(engine.seen[0].after)
    # The counting engine says of every request that it ended 0.25 s after its first token.
    assert first.first_token_s == pytest.approx(first.end_s - 0.25)
    assert 0 < first.first_text_s <= first.end_s
    assert refused.at_s >= 0.1
    assert third.at_s >= 0.2
    assert refused.error.startswith("InvalidRequestError")
    assert (first.error, third.error) == ("", "")


def test_a_burst_is_sent_when_the_one_before_has_ended(engine: CountingEngine) -> None:
    said: list[str] = []
    with InProcessServer(engine) as server:
        bursts = asyncio.run(measure_bursts(server.address, seed=1, on_progress=said.append))
    sizes = [len(burst) for burst in bursts]
    assert sizes == ([1] * 7 + [2, 4, 8] * 2) * 4
    assert said == [f"{sum(sizes)} requests measured in 52 bursts, 0 unanswered"]
    assert len({request.before for request in engine.seen}) == len(engine.seen) == sum(sizes) + 9
    last = max(request.output_tokens for burst in bursts for request in burst)
    assert last == 64
