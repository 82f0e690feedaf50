"""Both clients against a real server: answers, streams, timeouts, and the server's errors come back as themselves."""

import asyncio
import gc
import math
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine.types import ContextChunk
from server.client import AsyncClient, Client
from server.editing import SuggestionUpdate
from server.errors import (
    AddressError,
    BusyError,
    CompletionFailedError,
    DeadlineError,
    InvalidRequestError,
    RequestCancelledError,
    RequestFailedError,
    UnavailableError,
)
from tests.server.counting_engine import CountingEngine, expected_text
from tests.server.in_process_server import InProcessServer


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    engine = CountingEngine()
    yield engine
    engine.close(timeout_s=0)


@pytest.fixture
def gated_engine() -> Iterator[CountingEngine]:
    engine = CountingEngine(is_gated=True)
    yield engine
    engine.close(timeout_s=0)


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_completion_has_text_reason_usage_source_and_id(engine: CountingEngine) -> None:
    with InProcessServer(engine) as server, Client(server.address) as client:
        completion = client.complete("x = 7", "\n", max_tokens=3, request_id="mine")
    assert (completion.text, completion.finish_reason, completion.source) == ("8 9 10 ", "length", "model")
    assert (completion.usage.num_prompt_tokens, completion.usage.num_generated_tokens) == (6, 3)
    assert completion.request_id == "mine"


def test_every_option_reaches_the_engine(engine: CountingEngine) -> None:
    context = [ContextChunk(path="b.py", text="y")]
    with InProcessServer(engine) as server, Client(server.address) as client:
        client.complete(
            "x = 7",
            path="a.py",
            context=context,
            temperature=0.5,
            top_k=4,
            top_p=0.5,
            seed=9,
            max_tokens=2,
            stop=["z"],
            session_id="s",
            language="python",
        )
    [request] = engine.seen
    sampling = request.sampling
    assert (request.path, request.context) == ("a.py", tuple(context))
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 4, 0.5, 9)
    assert (sampling.max_tokens, sampling.stop) == (2, ("z",))


def test_an_unknown_option_is_a_type_error(engine: CountingEngine) -> None:
    client: Any = Client(unused_address())
    with client, pytest.raises(TypeError, match="max_token"):
        client.complete("x", max_token=3)


def test_a_stream_gives_each_text_and_then_the_completion(engine: CountingEngine) -> None:
    with InProcessServer(engine) as server, Client(server.address) as client:
        stream = client.stream("7", max_tokens=3)
        assert next(stream) == "8 "
        assert stream.completion is None
        assert list(stream) == ["9 ", "10 "]
        assert stream.completion is not None
        assert stream.completion.text == "8 9 10 "
        stream.close()


def test_the_asynchronous_client_does_the_same(engine: CountingEngine) -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            assert await client.is_serving()
            await client.wait_until_serving(timeout_s=5)
            assert (await client.complete("7", max_tokens=3)).text == "8 9 10 "
            async with client.stream("7", max_tokens=3) as stream:
                assert [text async for text in stream] == ["8 ", "9 ", "10 "]
            assert stream.completion is not None
            assert stream.completion.source == "model"
            with pytest.raises(InvalidRequestError, match="top_k is -1"):
                await client.complete("7", top_k=-1)

    with InProcessServer(engine) as server:
        asyncio.run(scenario(server.address))


def test_one_blocking_client_serves_several_threads(engine: CountingEngine) -> None:
    texts: dict[int, str] = {}
    with InProcessServer(engine) as server, Client(server.address) as client:

        def ask(number: int) -> None:
            texts[number] = client.complete(str(number), max_tokens=2).text

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {number: f"{number + 1} {number + 2} " for number in range(8)}


@pytest.mark.parametrize("way", ["closed", "left", "dropped"])
def test_a_stream_that_is_given_up_cancels_the_request(gated_engine: CountingEngine, way: str) -> None:
    with InProcessServer(gated_engine) as server, Client(server.address) as client:
        stream = client.stream("7", max_tokens=9)
        gated_engine.allow()
        assert next(stream) == "8 "
        if way == "closed":
            stream.close()
            stream.close()
        elif way == "left":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        gated_engine.wait_until_empty()
        assert list(gated_engine.ends.values()) == ["cancelled"]


def test_a_stream_can_be_cancelled_from_another_thread(gated_engine: CountingEngine) -> None:
    with InProcessServer(gated_engine) as server, Client(server.address) as client:
        stream = client.stream("7")
        thread = threading.Thread(target=lambda: (gated_engine.wait_until_running(1), stream.cancel()))
        thread.start()
        with pytest.raises(RequestCancelledError):
            list(stream)
        thread.join()
        gated_engine.wait_until_empty()
        unsent = client.stream("7")
        unsent.cancel()
        with pytest.raises(RequestCancelledError, match="cancelled before it was sent"):
            next(unsent)
    assert list(gated_engine.ends.values()) == ["cancelled"]


def test_options_that_would_be_misread_are_refused() -> None:
    with Client("127.0.0.1:1") as client:
        with pytest.raises(TypeError, match="stop is 'ab'; expected a sequence of texts"):
            client.stream("7", stop="ab")
        with pytest.raises(InvalidRequestError, match="the timeout is 0 s; expected more than 0"):
            client.stream("7", timeout_s=0)


@pytest.mark.parametrize("way", ["closed", "task cancelled"])
def test_an_asynchronous_stream_that_is_given_up_cancels_the_request(gated_engine: CountingEngine, way: str) -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            stream = client.stream("7", max_tokens=9)
            gated_engine.allow()
            assert await anext(stream) == "8 "
            if way == "closed":
                await stream.aclose()
            else:
                reading = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0.01)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            await asyncio.to_thread(gated_engine.wait_until_empty)

    with InProcessServer(gated_engine) as server:
        asyncio.run(scenario(server.address))
    assert list(gated_engine.ends.values()) == ["cancelled"]


def test_a_stream_that_was_never_read_asks_nothing(engine: CountingEngine) -> None:
    with InProcessServer(engine) as server, Client(server.address) as client:
        client.stream("7").close()
        client.complete("8", max_tokens=1)
    assert [request.before for request in engine.seen] == ["8"]


def failure(client: Client, before: str = "7", **options: Any) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as raised:
        client.complete(before, **options)
    return raised.value


def test_the_servers_errors_come_back_as_themselves(gated_engine: CountingEngine) -> None:
    with InProcessServer(gated_engine, max_in_flight=1, drain_s=0.01) as server, Client(server.address) as client:
        invalid = failure(client, max_tokens=0)
        assert type(invalid) is InvalidRequestError
        assert str(invalid).startswith("max_tokens is 0; expected 1 to 1024")
        late = failure(client, timeout_s=0.05)
        assert type(late) is DeadlineError
        gated_engine.wait_until_empty()
        running = threading.Thread(target=client.complete, args=("7",), kwargs={"max_tokens": 1})
        running.start()
        gated_engine.wait_until_running(1)
        busy = failure(client)
        assert type(busy) is BusyError
        assert busy.retry_after_s > 0
        gated_engine.allow()
        running.join()
        gated_engine.fails_with = "the device is gone"
        gated_engine.allow()
        failed = failure(client)
        assert (type(failed), str(failed)) == (
            CompletionFailedError,
            "the engine failed the request: the device is gone",
        )


def test_a_cancelled_request_is_told_from_a_failed_one(gated_engine: CountingEngine) -> None:
    with InProcessServer(gated_engine) as server, Client(server.address) as client:

        def cancel() -> None:
            gated_engine.wait_until_running(1)
            gated_engine.cancel(gated_engine.seen[0].request_id)

        thread = threading.Thread(target=cancel)
        thread.start()
        assert type(failure(client)) is RequestCancelledError
        thread.join()


def test_the_engines_full_queue_carries_its_own_hint() -> None:
    engine = CountingEngine(is_gated=True, num_slots=1, max_waiting=0)
    with InProcessServer(engine) as server, Client(server.address) as client, Client(server.address) as other:
        running = threading.Thread(target=client.complete, args=("7",), kwargs={"max_tokens": 1})
        running.start()
        engine.wait_until_running(1)
        busy = failure(other)
        assert isinstance(busy, BusyError)
        assert busy.retry_after_s == 0.25
        engine.allow()
        running.join()


def test_a_message_beyond_grpcs_limit_is_invalid_and_not_busy(engine: CountingEngine) -> None:
    with (
        InProcessServer(engine, max_message_bytes=2000, max_text_bytes=1000) as server,
        Client(server.address) as client,
    ):
        error = failure(client, "x" * 3000)
        assert type(error) is InvalidRequestError
        assert str(error).endswith("send the text around the cursor, or raise server.max_message_bytes")


def test_a_server_that_is_not_there_is_unavailable_with_a_remedy() -> None:
    address = unused_address()
    with Client(address) as client:
        error = failure(client)
        assert type(error) is UnavailableError
        assert str(error).startswith(f"{address}: ")
        assert str(error).endswith("; start a server there (`cloudcomplete serve`) or name another")
        assert not client.is_serving()
        with pytest.raises(UnavailableError) as raised:
            client.wait_until_serving(timeout_s=0.1)
        assert str(raised.value) == f"{address} was not serving within 0.1 s; see the server's output, or wait longer"


def test_a_starting_server_is_unavailable_until_its_engine_is_open(engine: CountingEngine) -> None:
    with InProcessServer(None) as server, Client(server.address) as client:
        assert not client.is_serving()
        assert str(failure(client)) == (
            f"{server.address}: the server is still starting (nothing loaded yet); try again in a few seconds"
        )
        opening = threading.Timer(0.05, lambda: server.call(server.open_engine(engine)))
        opening.start()
        client.wait_until_serving(timeout_s=5)
        assert client.complete("7", max_tokens=1).text == "8 "
        opening.join()


def test_an_asynchronous_client_can_wait_for_a_server_that_does_not_come() -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            assert not await client.is_serving(timeout_s=0.1)
            with pytest.raises(UnavailableError):
                await client.wait_until_serving(timeout_s=0.1)

    asyncio.run(scenario(unused_address()))


def test_an_infinite_timeout_leaves_the_deadline_to_the_server(gated_engine: CountingEngine) -> None:
    with InProcessServer(gated_engine, default_deadline_s=0.05) as server, Client(server.address) as client:
        assert str(failure(client, timeout_s=math.inf)).startswith("the request did not end within 0.05 s")


def test_an_answer_without_its_last_chunk_is_a_failure(engine: CountingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.wire.is_final", lambda chunk: False)
    with InProcessServer(engine) as server, Client(server.address) as client:
        assert str(failure(client, max_tokens=1)) == (
            f"{server.address}: the answer ended without a finish reason; expected one; try again"
        )


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":5", "localhost:x", "h:0", "h:65536", "h:²"])
def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(AddressError, match=r"expected HOST:PORT, such as 127\.0\.0\.1:50051"):
        Client(address)
    with pytest.raises(AddressError):
        AsyncClient(address)


def test_a_proxy_for_the_outside_world_is_not_used_for_this_machine(
    engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:9")
    monkeypatch.setenv("grpc_proxy", "http://192.0.2.1:9")
    with InProcessServer(engine) as server, Client(server.address) as client:
        assert client.complete("7", max_tokens=1).text == "8 "


def test_a_session_follows_a_document_and_answers_typing_from_what_it_suggested(engine: CountingEngine) -> None:
    whole = expected_text("7", 12)
    with InProcessServer(engine) as server, Client(server.address) as client:
        with client.session(path="a.py", max_tokens=12) as session:
            opened = session.open("🙂 = 7\n", 5)
            *_, last = until_whole(session, opened)
            assert last.completion is not None
            assert (last.text, last.completion.source) == (whole, "model")
            assert session.shown(opened) == opened + 1
            typed = session.edit(5, 5, "8 ")
            *_, last = until_whole(session, typed)
            assert last.completion is not None
            assert (last.text, last.completion.source, session.text) == (whole[2:], "session", "🙂 = 78 \n")
            session.accepted(typed, "9 ")
            session.rejected(typed)
            until_whole(session, session.move(5))
        assert list(session) == []
        session.close()
    assert (engine.seen[0].path, engine.seen[0].before, engine.seen[0].after) == ("a.py", "🙂 = 7", "\n")


def until_whole(session: Any, state: int) -> list[SuggestionUpdate]:
    """Read updates until a state's suggestion is whole."""
    updates: list[SuggestionUpdate] = []
    while not updates or updates[-1].completion is None:
        updates.append(next(session))
        assert (updates[-1].state, updates[-1].error) == (state, None)
    return updates


def test_a_session_says_what_went_wrong_and_goes_on_when_opened_again(engine: CountingEngine) -> None:
    with InProcessServer(engine) as server, Client(server.address) as client, client.session() as session:
        session.open("a\0", 0)
        update = next(session)
        assert isinstance(update.error, InvalidRequestError)
        assert update.needs_text
        assert until_whole(session, session.open("7", 1, is_quiet=False))


def test_what_is_no_place_in_the_text_is_refused_before_it_is_sent(engine: CountingEngine) -> None:
    with InProcessServer(engine) as server, Client(server.address) as client, client.session() as session:
        session.open("7", 1, is_quiet=True)
        with pytest.raises(ValueError, match="the cursor is at 2; expected 0 to 1, an index into the text"):
            session.move(2)
        with pytest.raises(ValueError, match="the edit is from 0 to 2; expected a part of the text, 0 to 1"):
            session.edit(0, 2, "")
        with pytest.raises(ValueError, match="the cursor is at 5"):
            session.edit(0, 0, "x", cursor=5)
        with pytest.raises(InvalidRequestError, match="the request cannot be sent"):
            session.edit(0, 0, "\ud800")
        assert session.text == "7"
        until_whole(session, session.edit(1, 1, "1"))


def test_a_session_takes_no_options_of_single_requests() -> None:
    with Client(unused_address()) as client, pytest.raises(TypeError, match="is_fresh is an option of a single reque"):
        client.session(is_fresh=True)


def test_a_session_with_a_server_that_is_not_there_says_so() -> None:
    with Client(unused_address()) as client, client.session() as session, pytest.raises(UnavailableError):
        next(session)


def test_the_asynchronous_session_does_the_same(engine: CountingEngine) -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client, client.session(max_tokens=12) as session:
            assert await session.open("7", 1) == 1
            async for update in session:
                if update.completion is not None:
                    break
            assert update.text == expected_text("7", 12)
            assert [await session.shown(1), await session.accepted(1, "8"), await session.rejected(1)] == [2, 3, 4]
            typed = await session.edit(1, 1, "8 9 ")
            update = await anext(session)
            assert update.completion is not None
            assert (update.state, update.completion.source) == (typed, "session")
            assert session.text == "78 9 "
            await session.move(0, is_quiet=True)
            reading = asyncio.create_task(anext(session))
            await asyncio.sleep(0.01)
            session.close()
            with pytest.raises(StopAsyncIteration):
                await reading

    with InProcessServer(engine) as server:
        asyncio.run(scenario(server.address))
