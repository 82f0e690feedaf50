"""The grpc dialect against the counting engine, and how dialects are opened by name."""

import asyncio
from collections.abc import Callable

import pytest

from engine.types import ContextChunk
from loadtest.dialects import DIALECTS, Query, Reply, open_dialect
from loadtest.errors import DialectError
from loadtest.grpc_dialect import GrpcDialect
from loadtest.llama_infill import LlamaInfill
from loadtest.plugin_cache import PluginCache
from server.errors import AddressError
from tests.server.counting_engine import WAIT_S, CountingEngine
from tests.server.in_process_server import InProcessServer


def ask(server: InProcessServer, query: Query, *, deadline_s: float = 5.0) -> tuple[Reply, list[str]]:
    shown: list[str] = []

    async def run() -> Reply:
        async with open_dialect("grpc", server.address) as dialect:
            return await dialect.complete(query, deadline_s=deadline_s, on_text=shown.append)

    return asyncio.run(run()), shown


async def until(is_so: Callable[[], bool]) -> None:
    """Return when something is so on the engine's thread."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110, it has no event
            await asyncio.sleep(0.005)


def test_an_answer_is_streamed_with_its_tokens_and_its_source() -> None:
    with InProcessServer(CountingEngine()) as server:
        reply, shown = ask(server, Query(before="x = 7", after="z", max_tokens=3))
    assert (reply.text, "".join(shown), reply.error) == ("8 9 10 ", "8 9 10 ", None)
    assert (reply.source, reply.is_from_model, reply.is_cut_short) == ("model", True, True)
    assert reply.num_generated_tokens == 3
    assert reply.num_computed_tokens is not None
    assert reply.first_text_s is not None
    assert 0 < reply.first_text_s <= reply.total_s
    assert sum(part.num_chars for part in reply.parts) == len(reply.text)


def test_everything_that_is_asked_reaches_the_engine() -> None:
    engine = CountingEngine()
    chunk = ContextChunk(path="b.py", text="y = 1\n")
    query = Query(before="x = 7", after="z", path="a.py", context=(chunk,), max_tokens=2, is_fresh=True)
    with InProcessServer(engine) as server:
        ask(server, query)
    [request] = engine.seen
    assert (request.before, request.after, request.path, request.context) == ("x = 7", "z", "a.py", (chunk,))
    assert (request.sampling.max_tokens, request.sampling.temperature, request.is_fresh) == (2, 0.0, True)


def test_cancelling_ends_the_request_on_the_server() -> None:
    engine = CountingEngine(is_gated=True)

    async def run(address: str) -> None:
        async with open_dialect("grpc", address) as dialect:
            asking = asyncio.ensure_future(dialect.complete(Query(before="1"), deadline_s=5.0))
            await until(lambda: bool(engine.seen))
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await until(lambda: bool(engine.ends))

    with InProcessServer(engine) as server:
        asyncio.run(run(server.address))
    assert list(engine.ends.values()) == ["cancelled"]


@pytest.mark.parametrize(
    ("query", "kind"), [(Query(before="1", max_tokens=0), "refused"), (Query(before="1", max_tokens=10**6), "refused")]
)
def test_a_query_that_is_refused_is_an_error(query: Query, kind: str) -> None:
    with InProcessServer(CountingEngine()) as server:
        reply, _ = ask(server, query)
    assert reply.error_kind == kind
    assert "max_tokens" in str(reply.error)


def test_a_deadline_is_an_error() -> None:
    with InProcessServer(CountingEngine(is_gated=True)) as server:
        reply, _ = ask(server, Query(before="1"), deadline_s=0.1)
    assert reply.error_kind == "deadline"


def test_a_server_that_goes_away_is_lost() -> None:
    async def run(server: InProcessServer) -> Reply:
        async with open_dialect("grpc", server.address) as dialect:
            await asyncio.to_thread(server.call, server.stop(drain_s=0.0))
            return await dialect.complete(Query(before="1"), deadline_s=5.0)

    with InProcessServer(CountingEngine()) as server:
        assert asyncio.run(run(server)).error_kind == "lost"


def test_nothing_at_the_address_is_a_dialect_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.grpc_dialect.OPEN_TIMEOUT_S", 0.1)

    async def run() -> None:
        async with open_dialect("grpc", "127.0.0.1:9"):
            pass

    with pytest.raises(DialectError, match=r"127\.0\.0\.1:9 was not serving within 0\.1 s"):
        asyncio.run(run())


def test_dialects_are_opened_by_name() -> None:
    assert isinstance(open_dialect("grpc", "h:1"), GrpcDialect)
    assert isinstance(open_dialect("llama-infill", "http://h:1"), LlamaInfill)
    assert isinstance(open_dialect("grpc", "h:1", has_client_cache=True), PluginCache)
    assert DIALECTS == ("grpc", "llama-infill")


def test_an_unknown_dialect_or_address_is_refused() -> None:
    with pytest.raises(DialectError, match="'morse' is no dialect; expected one of: grpc, llama-infill"):
        open_dialect("morse", "h:1")
    with pytest.raises(DialectError, match="the server address is 'http://h:1'; grpc expected HOST:PORT, such as "):
        open_dialect("grpc", "http://h:1")
    with pytest.raises(AddressError, match="the server address is 'h'; expected HOST:PORT"):
        open_dialect("grpc", "h")


def test_an_answer_without_all_counts_has_no_cost_and_one_without_a_model_none() -> None:
    assert Reply(num_prompt_tokens=3, num_reused_tokens=1).num_computed_tokens is None
    assert Reply(num_prompt_tokens=3, num_reused_tokens=1, num_generated_tokens=2).num_computed_tokens == 4
    assert Reply(is_from_model=False).num_computed_tokens == 0


def test_a_server_that_is_there_is_alive() -> None:
    async def is_alive(address: str) -> bool:
        dialect = GrpcDialect(address)
        try:
            return await dialect.is_alive()
        finally:
            await dialect.__aexit__()

    with InProcessServer(CountingEngine()) as server:
        assert asyncio.run(is_alive(server.address))
    assert not asyncio.run(is_alive(server.address))
