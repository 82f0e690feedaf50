"""What `bench warm-cache` types and logs, and that a place which was warmed is answered without the model."""

import asyncio
from pathlib import Path

import pytest

from cache.completion_cache import CompletionCache
from cache.config import CacheConfig
from loadtest.benchmarks import warm_cache
from loadtest.benchmarks.warm_cache import Brisk
from loadtest.dialects import open_dialect
from loadtest.replay import Replay
from loadtest.stretches import Stretch
from server.client import Client
from server.request_log import read_request_log
from tests.loadtest.handmade_trace import trace_of, typed
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer

# The second line is typed where the first one was before it.
TRACE = Brisk(trace_of([*typed("abc"), *typed("\n1 2 3 4", at=3, begin_s=9.0, gap_s=0.2)]))


def test_pauses_are_cut_and_nothing_else() -> None:
    times_s = [moment.at_s for moment in TRACE.moments(first=0, count=5)]
    assert times_s == pytest.approx([0.0, 0.1, 0.2, 1.2, 1.4, 1.6])


def test_the_earlier_log_has_the_keystrokes_before_and_none_that_is_typed() -> None:
    stretches = [Stretch(2, 4), Stretch(3, 5), Stretch(0, 1)]
    earlier = warm_cache.requests_before(TRACE, stretches)
    assert [request.before for request in earlier] == ["ab", "ab"], "the others are typed by one of the three"
    asked = warm_cache.requests_at(TRACE, stretches[:1])
    assert [request.before for request in asked] == ["abc", "abc\n", "abc\n1", "abc\n1 "]


def replay_at(address: str) -> Replay:
    replay = warm_cache.replay_of(TRACE, users=1, keystrokes=6)

    async def run() -> None:
        async with open_dialect("grpc", address) as dialect:
            await replay.run(dialect)

    asyncio.run(run())
    return replay


def test_the_log_is_the_servers_and_what_was_warmed_by_it_needs_no_model(tmp_path: Path) -> None:
    log, made = tmp_path / "requests", tmp_path / "made"
    with InProcessServer(CountingEngine(), request_log=str(log)) as server:
        cold = replay_at(server.address)
    requests = warm_cache.requests_at(TRACE, cold.stretches)
    warm_cache.write_log(requests, made)

    def asked(path: Path) -> list[tuple[object, ...]]:
        return [(one.request.before, one.request.after, one.request.path, one.request.sampling) for one in
                read_request_log(path)]  # fmt: skip

    assert asked(log) == asked(made)
    cache = CompletionCache(CacheConfig(directory=str(tmp_path), snapshot_s=0.0))
    with InProcessServer(CountingEngine(), cache=cache) as server, Client(server.address) as client:
        warmed = warm_cache.warm(requests, server.address, tmp_path)
        assert warmed["warm_requests"] == len(requests)
        sources = [
            client.complete(one.before, one.after, path=one.path, temperature=0.0, max_tokens=32, session_id="s").source
            for one in requests
        ]
    assert sources[0] == "memory"
    assert "model" not in sources
