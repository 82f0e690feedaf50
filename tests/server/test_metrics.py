"""What Prometheus reads, over HTTP, on the counting engine."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.types import EngineStats
from server import app
from server.client import Client
from server.errors import BusyError, RequestFailedError, StartError
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def read(port: int) -> dict[str, float]:
    """Return samples by name; those of buckets under the names of their bounds."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        sample.name.removeprefix("cloudcomplete_") + sample.labels.get("le", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def serving(engine: CountingEngine | None, **config: object) -> Iterator[tuple[InProcessServer, int]]:
    port = free_port()
    with InProcessServer(engine, metrics_port=port, **config) as server:
        yield server, port


def test_every_end_of_a_request_is_counted_with_its_tokens() -> None:
    engine = CountingEngine(is_gated=True)
    with serving(engine) as (server, port), Client(server.address) as client:
        engine.allow(3)
        client.complete("7", max_tokens=3)
        engine.fails_with = "out of order"
        engine.allow()
        with pytest.raises(RequestFailedError):
            client.complete("7", max_tokens=3)
        stream = client.stream("78", max_tokens=1000)
        engine.allow()
        next(stream)
        stream.close()
        engine.wait_until_empty()
        seen = read(port)
    assert (seen["requests_finished_total"], seen["requests_failed_total"]) == (1, 1)
    assert seen["requests_cancelled_total"] == 1
    assert seen["computed_tokens_total"] == (1 + 3) + 0 + (1 + 1)
    assert (seen["prefix_cache_queries_total"], seen["prefix_cache_hits_total"]) == (1 + 1 + 2, 0 + 1 + 1)
    assert seen["generation_tokens_total"] == 3 + 0 + 1
    assert seen["recompiles_total"] == 0


def test_what_runs_waits_and_is_refused_is_told_while_it_is_so() -> None:
    engine = CountingEngine(num_slots=1, is_gated=True)
    with serving(engine, max_in_flight=2) as (server, port), Client(server.address) as client:
        streams = [client.stream("7", max_tokens=1) for _ in range(2)]
        for stream in streams:
            server.begin(_read(stream))
        engine.wait_for(lambda: len(engine.seen) == 2)
        with pytest.raises(BusyError):
            client.complete("7")
        seen = read(port)
        assert (seen["num_requests_running"], seen["num_requests_waiting"]) == (1, 1)
        assert (seen["num_requests_in_flight"], seen["requests_rejected_total"]) == (2, 1)
        assert seen["kv_cache_usage_perc"] == 1.0
        engine.allow(2)
        engine.wait_until_empty()
        assert read(port)["num_requests_running"] == 0


async def _read(stream: object) -> None:
    import asyncio

    await asyncio.to_thread(list, stream)  # type: ignore[call-overload]


def test_the_time_to_the_first_text_is_a_histogram_with_one_entry_a_request() -> None:
    with serving(CountingEngine()) as (server, port), Client(server.address) as client:
        for _ in range(3):
            client.complete("7", max_tokens=2)
        seen = read(port)
    assert seen["time_to_first_token_seconds_count"] == seen["time_to_first_token_seconds_bucket+Inf"] == 3
    assert 0 < seen["time_to_first_token_seconds_sum"] < 30


def test_answers_and_what_became_of_suggestions_are_counted_by_source() -> None:
    with serving(CountingEngine()) as (server, port), Client(server.address) as client:
        for before in ("7", "78 ", "x 3"):
            client.complete(before, max_tokens=12, session_id="s")
        server.app.metrics.count_suggestion("partly_accepted", "session")
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            page = answer.read().decode()
    assert 'cloudcomplete_answers_total{source="model"} 2.0' in page
    assert 'cloudcomplete_answers_total{source="session"} 1.0' in page
    assert 'cloudcomplete_suggestions_total{event="partly_accepted",source="session"} 1.0' in page


def test_before_there_is_an_engine_everything_is_0() -> None:
    with serving(None) as (_, port):
        assert read(port)["computed_tokens_total"] == 0


def test_without_a_port_nothing_listens() -> None:
    with InProcessServer(CountingEngine()) as server:
        assert server.app.metrics.close() is None


def test_a_port_that_is_taken_at_the_last_moment_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_check_address", lambda host, port, remedy: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"cannot serve metrics on 127\.0\.0\.1:{port}: .*; choose another port"):
            InProcessServer(CountingEngine(), metrics_port=port).__enter__()


def test_a_port_in_use_is_named_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as raised:
            InProcessServer(CountingEngine(), metrics_port=port).__enter__()
    assert str(raised.value).endswith("stop what uses it, or choose another with --set server.metrics_port=N (0: none)")


def test_why_requests_were_not_sparse_is_told_by_reason() -> None:
    class WithFallbacks(CountingEngine):
        def stats(self) -> EngineStats:
            return msgspec.structs.replace(
                super().stats(), num_sparse=3, num_kept_blocks=5, num_visible_blocks=10, num_sparse_choices=4,
                sum_kept_mass=3.0, num_sparse_fallbacks={"short": 2, "window": 1},
            )  # fmt: skip

    with serving(WithFallbacks()) as (_, port):
        seen = read(port)
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    assert (seen["sparse_blocks_kept_total"], seen["sparse_blocks_visible_total"]) == (5, 10)
    assert (seen["sparse_requests_total"], seen["sparse_kept_mass"]) == (3, 0.75)
    assert 'cloudcomplete_sparse_fallbacks_total{reason="short"} 2.0' in text
    assert 'cloudcomplete_sparse_fallbacks_total{reason="window"} 1.0' in text


def test_windows_of_learned_budgets_are_told_by_budget_context_and_value() -> None:
    class WithBudgets(CountingEngine):
        def stats(self) -> EngineStats:
            windows = {"chunk/rows up to 4, few wait/8": 3, "drafts/rows up to 4, few accepted/1": 2}
            return msgspec.structs.replace(super().stats(), num_budget_windows=windows)

    with serving(WithBudgets()) as (server, port):
        server.app.completer.prefetcher.budget._factors.counts["prefetch/one types/0.5"] = 4
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    family = 'cloudcomplete_budget_windows_total{budget="%s",context="%s",value="%s"} %s'
    for told in (
        ("chunk", "rows up to 4, few wait", "8", 3.0),
        ("drafts", "rows up to 4, few accepted", "1", 2.0),
        ("prefetch", "one types", "0.5", 4.0),
    ):
        assert family % told in text
