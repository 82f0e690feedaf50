"""The llama-infill dialect against a double of the server: what is sent, what is read, what goes wrong."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from engine.types import ContextChunk
from loadtest.dialects import OPEN_TIMEOUT_S, Query, Reply
from loadtest.errors import DialectError
from loadtest.llama_infill import LINES_ABOVE, LINES_BELOW, LlamaInfill, Place, place_of
from tests.loadtest.llama_double import FINAL, PING, LlamaDouble, ResettingDouble, event, streamed, whole

QUERY = Query(before="def f():\n    ret", after="\n\nf()\n", max_tokens=9)


def ask(
    double_of: Callable[[], LlamaDouble], query: Query = QUERY, *, deadline_s: float = 5.0
) -> tuple[Reply, list[str]]:
    """Ask one double one query."""
    shown: list[str] = []

    async def run() -> Reply:
        async with double_of() as double, LlamaInfill(double.address) as dialect:
            return await dialect.complete(query, deadline_s=deadline_s, on_text=shown.append)

    return asyncio.run(run()), shown


def bodies(*queries: Query) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        async with LlamaDouble(streamed(FINAL)) as double, LlamaInfill(double.address) as dialect:
            for query in queries:
                await dialect.complete(query, deadline_s=5.0)
            return double.bodies

    return asyncio.run(run())


def test_an_answer_is_streamed_and_its_tokens_are_told() -> None:
    reply, shown = ask(lambda: LlamaDouble(streamed(event("urn"), event(" 1"), FINAL)))
    assert (reply.text, shown, reply.error) == ("urn 1", ["urn", " 1"], None)
    assert (reply.source, reply.is_from_model, reply.is_cut_short) == ("model", True, False)
    assert (reply.num_prompt_tokens, reply.num_reused_tokens, reply.num_generated_tokens) == (100, 88, 5)
    assert reply.num_computed_tokens == 17
    assert reply.first_text_s is not None
    assert 0 < reply.first_text_s <= reply.total_s


def test_events_may_be_cut_anywhere_and_come_many_at_once() -> None:
    text = event("é\N{GRINNING FACE}") + event(" 1") + FINAL
    for size in (1, 7, len(text)):
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        reply, _ = ask(lambda parts=parts: LlamaDouble(streamed(*parts)))  # type: ignore[misc]
        assert (reply.text, reply.error) == ("é\N{GRINNING FACE} 1", None)


def test_a_sign_of_life_is_no_text() -> None:
    reply, shown = ask(lambda: LlamaDouble(streamed(PING, event("a"), PING, FINAL)))
    assert (reply.text, shown, reply.error) == ("a", ["a"], None)


def test_a_server_that_answers_for_its_health_is_alive() -> None:
    async def run(*, hangs: str) -> bool:
        async with LlamaDouble(hangs=hangs) as double:
            if hangs:
                double.pages["health"] = []
            return await LlamaInfill(double.address).is_alive()

    assert asyncio.run(run(hangs=""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loadtest.llama_infill.OPEN_TIMEOUT_S", 0.05)
        assert not asyncio.run(run(hangs="health"))


def test_a_server_that_does_not_count_has_no_counts() -> None:
    reply, _ = ask(lambda: LlamaDouble(streamed(event("a"), b'data: {"content": "", "stop": true}\n\n')))
    assert (reply.num_prompt_tokens, reply.num_reused_tokens, reply.num_computed_tokens) == (None, None, None)


def test_the_limit_of_tokens_is_told_apart_from_the_models_end() -> None:
    assert ask(lambda: LlamaDouble(streamed(event("a", stop=True, stop_type="limit"))))[0].is_cut_short


def test_it_is_asked_as_the_plugins_ask() -> None:
    chunk = ContextChunk(path="other.py", text="x = 1\n")
    [body] = bodies(
        Query(before="a\nb\nret", after="urn\nc", max_tokens=9, context=(chunk,), path="f.py", session_id="s")
    )
    assert body == {
        "input_prefix": "a\nb\n",
        "prompt": "ret",
        "input_suffix": "urn\nc",
        "input_extra": [{"filename": "other.py", "text": "x = 1\n"}],
        "n_predict": 9,
        "temperature": 0.0,
        "top_k": 1,
        "stream": True,
        "cache_prompt": True,
        "id_slot": 0,
    }


def test_sessions_have_slots_of_their_own_while_there_are_enough() -> None:
    asked = bodies(*(Query(before="a", session_id=name) for name in ("one", "two", "one", "three", "")))
    assert [body["id_slot"] for body in asked] == [0, 1, 0, 0, -1]


def test_a_fresh_query_uses_nothing_that_was_kept() -> None:
    assert [body["cache_prompt"] for body in bodies(Query(before="a", is_fresh=True))] == [False]


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ("", "", Place("", "", "")),
        ("ab", "c", Place("", "ab", "c")),
        ("ab\n", "\nc", Place("ab\n", "", "\nc")),
        ("x\n" * 300 + "y", "", Place("x\n" * LINES_ABOVE, "y", "")),
        ("", "x\n" * 70 + "y", Place("", "", "x\n" * LINES_BELOW)),
        ("x\n" * LINES_ABOVE, "x\n" * LINES_BELOW, Place("x\n" * LINES_ABOVE, "", "x\n" * LINES_BELOW)),
    ],
)
def test_the_window_is_the_plugins(before: str, after: str, place: Place) -> None:
    assert place_of(Query(before=before, after=after)) == place


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (whole("503 Service Unavailable", b'{"error":{"message":"Loading model"}}'), "busy", "HTTP status 503: {"),
        (
            whole("400 Bad Request", b'{"error":{"code":400,"message":"request (2051 tokens) exceeds the available'),
            "refused",
            'HTTP status 400: {"error":{"code":400,"message":"request (2051 tokens) exceeds the available',
        ),
        (whole("501 Not Implemented", b"Infill is not supported"), "refused", "HTTP status 501: Infill is not supp"),
        (whole("500 Internal Server Error", b""), "refused", "HTTP status 500: no reason given"),
        (streamed(b"data: {not json}\n\n"), "malformed", "cannot read the event 'data: {not json}': JSON is malformed"),
        (
            streamed(b'data: {"stop": true}\n\n'),
            "malformed",
            "cannot read the event 'data: {\"stop\": true}': expected",
        ),
        (
            streamed(b'data: {"content": 5}\n\n'),
            "malformed",
            "cannot read the event 'data: {\"content\": 5}': Expected",
        ),
        (streamed(b"hello\n"), "malformed", "cannot read the event 'hello': expected `data: {...}`"),
        (streamed(b'error: {"message": "out of memory"}\n\n'), "failed", "the server failed: out of memory"),
        (streamed(event("a"), b'data: {"error": {"message": "oom"}}\n\n'), "failed", "the server failed: oom"),
        (whole("200 OK", b'{"error": {"message": "oom"}}'), "failed", "the server failed: oom"),
        (streamed(event("a")), "lost", "the answer ended before its last event"),
        (streamed(event("a"))[:-1], "lost", "the connection closed before the answer was whole"),
        ([], "lost", "the connection closed before the answer was whole"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "malformed", "the answer is not HTTP: "),
    ],
)
def test_what_goes_wrong_is_an_error_with_a_kind(answer: list[bytes], kind: str, message: str) -> None:
    reply, _ = ask(lambda: LlamaDouble(answer))
    assert reply.error_kind == kind
    assert reply.error is not None
    assert reply.error.partition(": ")[2].startswith(message)


def test_a_connection_that_breaks_is_lost() -> None:
    reply, _ = ask(lambda: ResettingDouble(streamed(event("a"))[:-1]))
    assert (reply.error_kind, reply.text) == ("lost", "a")
    assert str(reply.error).endswith("the connection broke: Connection reset by peer")


def test_a_server_that_has_gone_is_lost() -> None:
    async def run() -> Reply:
        async with LlamaDouble() as double:
            dialect = LlamaInfill(double.address)
        return await dialect.complete(QUERY, deadline_s=5.0)

    reply = asyncio.run(run())
    assert reply.error_kind == "lost"
    assert "cannot connect" in str(reply.error)


def test_an_answer_that_does_not_come_in_time_keeps_what_had_come() -> None:
    reply, _ = ask(lambda: LlamaDouble(streamed(event("par"))[:-1], hangs="infill"), deadline_s=0.05)
    assert (reply.error_kind, reply.text) == ("deadline", "par")
    assert reply.error is not None
    assert reply.error.endswith("no whole answer within 0.05 s")


def test_cancelling_closes_the_connection_so_that_the_server_stops() -> None:
    async def run() -> None:
        shown = asyncio.Event()
        unended = LlamaDouble(streamed(event("par"))[:-1], hangs="infill")
        async with unended as double, LlamaInfill(double.address) as dialect:
            asking = asyncio.ensure_future(dialect.complete(QUERY, deadline_s=5.0, on_text=lambda text: shown.set()))
            await asyncio.wait_for(shown.wait(), 5)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.wait_for(double.is_ended_by_client.wait(), 5)

    asyncio.run(run())


def test_the_end_of_an_answer_closes_the_connection() -> None:
    async def run() -> None:
        async with LlamaDouble(streamed(FINAL)[:-1], hangs="infill") as double, LlamaInfill(double.address) as dialect:
            assert (await dialect.complete(QUERY, deadline_s=5.0)).error is None
            await asyncio.wait_for(double.is_ended_by_client.wait(), 5)

    asyncio.run(run())


async def open_against(double: LlamaDouble) -> None:
    async with double, LlamaInfill(double.address):
        pass


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"health": whole("503 Service Unavailable", b"Loading model")}, "HTTP status 503: Loading model; expected a "),
        ({"props": whole("404 Not Found", b"")}, "HTTP status 404: no reason given; expected a llama.cpp server"),
        ({"props": whole("200 OK", b"<html>")}, "its /props are not a llama.cpp server's: JSON is malformed"),
        ({"props": whole("200 OK", b"{}")}, "its /props are not a llama.cpp server's: Object missing required field"),
    ],
)
def test_only_a_ready_server_of_the_kind_is_opened(pages: dict[str, list[bytes]], message: str) -> None:
    with pytest.raises(DialectError) as raised:
        asyncio.run(open_against(LlamaDouble(**pages)))
    assert str(raised.value).partition(": ")[2].startswith(message)


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.llama_infill.OPEN_TIMEOUT_S", 0.05)
    assert OPEN_TIMEOUT_S > 1

    with pytest.raises(DialectError, match=r"no answer within 0\.05 s; expected a llama\.cpp server"):
        asyncio.run(open_against(LlamaDouble(hangs="health", health=[])))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8080", "https://host", "http://", "http://host:99999", "http://u:p@host", "http://h/?a=1", ""],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(DialectError) as raised:
        LlamaInfill(address)
    assert str(raised.value) == (
        f"the server address is {address!r}; llama-infill expected http://HOST:PORT, such as http://127.0.0.1:8080"
    )


def test_an_address_may_have_a_path_that_all_requests_begin_with() -> None:
    async def run() -> list[str]:
        async with LlamaDouble(streamed(FINAL)) as double, LlamaInfill(f"{double.address}/llama/") as dialect:
            await dialect.complete(QUERY, deadline_s=5.0)
            return double.paths

    assert asyncio.run(run()) == ["/llama/health", "/llama/props", "/llama/infill"]
