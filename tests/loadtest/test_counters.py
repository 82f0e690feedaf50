"""What a server's metrics tell, of either kind, and what becomes of the figure when they tell nothing."""

import asyncio
from collections.abc import Sequence
from math import inf

import pytest

from loadtest import counters
from loadtest.counters import ComputedTokens, CounterSource, Reading
from loadtest.errors import CountersError
from server.client import Client
from server.metrics import KNOWN_ANSWER_BUCKETS_S
from tests.loadtest.llama_double import LlamaDouble, whole
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer
from tests.server.test_metrics import free_port


def llama_page(prompt: str = "20", predicted: str = "5", processing: int = 0, deferred: int = 0) -> str:
    """Return what llama-server writes, less what nobody reads here."""
    return (
        "# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens\n"
        "# TYPE llamacpp:prompt_tokens_total counter\n"
        f"llamacpp:prompt_tokens_total {prompt}\n"
        "# TYPE llamacpp:tokens_predicted_total counter\n"
        f"llamacpp:tokens_predicted_total {predicted}\n"
        "# TYPE llamacpp:requests_processing gauge\n"
        f"llamacpp:requests_processing {processing}\n"
        "# TYPE llamacpp:requests_deferred gauge\n"
        f"llamacpp:requests_deferred {deferred}\n"
    )


class Pages(LlamaDouble):
    """Gives one page of metrics after the other, the last one again and again."""

    def __init__(self, pages: Sequence[str]) -> None:
        super().__init__()
        self._left = list(pages)

    def answer(self, page: str) -> Sequence[bytes]:
        assert page == "metrics"
        return whole("200 OK", (self._left.pop(0) if len(self._left) > 1 else self._left[0]).encode())


def count(*pages: str) -> ComputedTokens:
    """Count what is computed between a first idle reading and the next."""

    async def run() -> ComputedTokens:
        async with Pages(pages) as double:
            computed = ComputedTokens(CounterSource(double.address))
            await computed.begin()
            await computed.end()
            return computed

    return asyncio.run(run())


def test_this_products_counters_are_read() -> None:
    engine, port = CountingEngine(), free_port()
    with InProcessServer(engine, metrics_port=port) as server, Client(server.address) as client:
        client.complete("78", max_tokens=3)
        reading = asyncio.run(CounterSource(f"http://127.0.0.1:{port}/metrics").read_idle())
    ahead = dict.fromkeys(("prefetch_tokens", "prefetch_used_tokens", "accepts", "accepts_continued_without_model"), 0)
    nothing = dict.fromkeys((*KNOWN_ANSWER_BUCKETS_S, float("inf")), 0)
    assert reading == Reading(num_computed_tokens=5, num_open=0, ahead=ahead, known_answers=nothing)


def test_counters_of_work_ahead_are_added_up_over_their_labels() -> None:
    names = ("cloudcomplete_computed_tokens_total", "cloudcomplete_num_requests_in_flight")
    page = "".join(f"{name} 3\n" for name in (*names, "cloudcomplete_num_requests_running"))
    page += 'cloudcomplete_prefetches_total{kind="key"} 4\ncloudcomplete_prefetches_total{kind="accept"} 1\n'
    assert Reading.parse(page) == Reading(num_computed_tokens=3, num_open=6, ahead={"prefetches": 5})


def test_answers_that_the_server_had_are_told_by_the_bound_that_covers_them() -> None:
    before = Reading(num_computed_tokens=0, num_open=0, known_answers={0.001: 2, 0.005: 2, inf: 2})
    after = Reading(num_computed_tokens=0, num_open=0, known_answers={0.001: 95, 0.005: 101, inf: 102})
    readings = iter((before, after))

    class Source(CounterSource):
        async def read_idle(self) -> Reading:
            return next(readings)

    computed = ComputedTokens(Source("http://127.0.0.1:1"))
    assert computed.known_answer_s(95) is None
    asyncio.run(computed.begin())
    asyncio.run(computed.end())
    assert [computed.known_answer_s(percent) for percent in (93, 95, 99, 100)] == [0.001, 0.005, 0.005, inf]


def test_llamas_counters_are_added_up() -> None:
    page = llama_page("20", "5", processing=2, deferred=1)
    assert Reading.parse(page) == Reading(num_computed_tokens=25, num_open=3)


def test_the_difference_of_two_idle_moments_is_what_was_computed() -> None:
    idle, busy, after = llama_page("20"), llama_page("40", processing=1), llama_page("120", "15")
    computed = count(idle, idle, busy, busy, after, after)
    assert (computed.count, computed.problem) == (110, "")


def test_a_server_that_was_started_anew_has_no_figure() -> None:
    computed = count(llama_page("20"), llama_page("20"), llama_page("1"))
    assert computed.count is None
    assert computed.problem == "the server's counters went backwards; it was started anew"


def test_without_a_source_the_problem_says_where_one_could_come_from() -> None:
    computed = ComputedTokens(None)
    asyncio.run(computed.begin())
    asyncio.run(computed.end())
    assert (computed.count, computed.problem) == (None, "no metrics of the server to read; see --metrics")


def test_a_run_that_ended_early_has_no_figure() -> None:
    async def run() -> ComputedTokens:
        async with Pages([llama_page()]) as double:
            computed = ComputedTokens(CounterSource(double.address))
            await computed.begin()
            return computed

    assert asyncio.run(run()).problem == "the run ended before its counters could be read"


def test_a_server_that_is_gone_in_the_end_has_no_figure() -> None:
    async def run() -> ComputedTokens:
        async with Pages([llama_page()]) as double:
            computed = ComputedTokens(CounterSource(double.address))
            await computed.begin()
        await computed.end()
        return computed

    computed = asyncio.run(run())
    assert computed.count is None
    assert "cannot connect" in computed.problem


def test_a_server_that_others_keep_busy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "IDLE_TIMEOUT_S", 0.2)
    with pytest.raises(CountersError, match=r"had requests in hand for 0\.2 s, so its counters are not of this run al"):
        count(llama_page(processing=1))


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("up 1\n", "no counters of computed tokens in it"),
        ("<html>", "invalid metric name"),
        (llama_page("1.23457e+06"), "llamacpp:prompt_tokens_total is 1.23457e+06, of which the server tells only six"),
    ],
)
def test_a_page_that_does_not_tell_is_refused_with_its_reason(page: str, problem: str) -> None:
    with pytest.raises(CountersError) as raised:
        count(page)
    assert problem in str(raised.value)
    assert str(raised.value).endswith("server.metrics_port, or of llama.cpp with --metrics")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(CountersError, match=r"the metrics' address is 'h:1'; expected http://HOST:PORT"):
        CounterSource("h:1")
