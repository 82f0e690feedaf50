"""Session streams through real connections: suggestions for the newest state, problems, and streams that go away."""

import asyncio
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from server.errors import BusyError
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.proto.cloudcomplete.v1 import completion_pb2_grpc
from server.session_service import MAX_PROBLEMS, MAX_SUGGESTIONS, Outbox
from server.types import AnswerPart
from tests.server.counting_engine import WAIT_S, CountingEngine, expected_text
from tests.server.in_process_server import InProcessServer

LIMIT = 40_000


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    engine = CountingEngine(is_gated=True)
    yield engine
    engine.close(timeout_s=0)


@pytest.fixture
def server(engine: CountingEngine) -> Iterator[InProcessServer]:
    with InProcessServer(engine, max_text_bytes=20_000, max_message_bytes=LIMIT, session_linger_s=0.02) as server:
        yield server


@pytest.fixture
def channel(server: InProcessServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for what happens on another thread; fails the test when it does not."""
    until_s = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.001)


class Stream:
    """One raw stream; events are numbered unless they say otherwise."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.seq = 0
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call: Any = channel.stream_stream
        self.call = call(
            "/cloudcomplete.v1.CompletionService/Session", response_deserializer=pb.SessionUpdate.FromString
        )(iter(self._events.get, None), timeout=WAIT_S)

    def send_bytes(self, message: bytes) -> None:
        self._events.put(message)

    def send(self, *, seq: int | None = None, **event: Any) -> int:
        self.seq = self.seq + 1 if seq is None else seq
        self.send_bytes(pb.SessionEvent(seq=self.seq, **event).SerializeToString())
        return self.seq

    def open(self, text: str = "7", *, cursor: int | None = None, max_tokens: int = 12, **fields: Any) -> int:
        sampling = pb.Sampling(max_tokens=max_tokens)
        at = len(text) if cursor is None else cursor
        return self.send(open=pb.OpenDocument(text=text, cursor=at, sampling=sampling, **fields))

    def type(self, at: int, text: str, **fields: Any) -> int:
        patch = pb.Patch(start=at, end=at, text=text)
        return self.send(edit=pb.EditDocument(patches=[patch], cursor=at + len(text), **fields))

    def suggestion(self, state: int) -> tuple[str, int]:
        """Return the text and the source of a state's whole suggestion; nothing else may come before it."""
        text = ""
        while True:
            update = next(self.call)
            assert (update.seq, update.WhichOneof("update")) == (state, "suggestion"), update
            text += update.suggestion.text
            if update.suggestion.finish_reason:
                return text, update.suggestion.source

    def problem(self) -> pb.SessionUpdate:
        update: pb.SessionUpdate = next(self.call)
        assert update.HasField("problem"), update
        return update

    def end(self) -> None:
        self._events.put(None)


@pytest.fixture
def stream(channel: grpc.Channel) -> Iterator[Stream]:
    stream = Stream(channel)
    yield stream
    stream.end()
    stream.call.cancel()


def test_a_state_gets_its_suggestion_and_typing_it_gets_the_rest_without_the_engine(
    stream: Stream, engine: CountingEngine
) -> None:
    engine.allow(12)
    whole = expected_text("7", 12)
    assert stream.suggestion(stream.open("x = 7\n", cursor=5)) == (whole, pb.SOURCE_MODEL)
    assert stream.suggestion(stream.type(5, "8")) == (whole[1:], pb.SOURCE_SESSION)
    assert stream.suggestion(stream.type(6, " 9 ")) == (whole[4:], pb.SOURCE_SESSION)
    assert engine.seen[0].after == "\n"


def test_only_the_newest_state_is_answered_and_older_requests_are_cancelled(
    stream: Stream, engine: CountingEngine
) -> None:
    stream.open("7")
    engine.wait_until_running(1)
    for at in range(1, 6):
        stream.type(at, "x")
    last = stream.type(6, " 40")
    engine.wait_for(lambda: bool(engine.seen) and engine.seen[-1].before == "7xxxxx 40")
    engine.wait_until_running(1)
    engine.allow(12)
    assert stream.suggestion(last) == (expected_text("40", 12), pb.SOURCE_MODEL)
    engine.wait_until_empty()
    assert [state for state in engine.ends.values() if state != "cancelled"] == ["finished"]


def test_an_edit_that_types_what_is_being_written_adopts_it(stream: Stream, engine: CountingEngine) -> None:
    stream.open("7")
    engine.wait_until_running(1)
    engine.allow(3)
    read = ""
    while read != "8 9 10 ":
        read += next(stream.call).suggestion.text
    typed = stream.type(1, "8 9")
    update = next(stream.call)
    assert (update.seq, update.suggestion.text) == (typed, " 10 ")
    engine.allow(9)
    assert stream.suggestion(typed) == (expected_text("10", 9), pb.SOURCE_MODEL)
    assert (len(engine.seen), list(engine.ends.values())) == (1, ["finished"])


def test_a_client_that_does_not_read_holds_up_nobody_else(channel: grpc.Channel, engine: CountingEngine) -> None:
    silent, other = Stream(channel), Stream(channel)
    engine.allow(10_000)
    for number in range(200):
        silent.send(move=pb.MoveCursor(cursor=99)) if number else silent.open("7", quiet=True)
        silent.open("x" * 19_000 + str(number), max_tokens=1000)
    assert other.suggestion(other.open("7"))[0] == expected_text("7", 12)
    for one in (silent, other):
        one.end()
        one.call.cancel()
    engine.wait_until_empty()


def test_draining_ends_streams_and_tells_suggestions(stream: Stream, server: InProcessServer) -> None:
    stream.open("7", quiet=True)
    stopping = server.begin(server.stop(drain_s=0.0))
    stream.type(1, " 8")
    updates = []
    with pytest.raises(grpc.RpcError):
        updates.extend(stream.call)
    assert stopping.result(WAIT_S)
    assert all(update.problem.code == grpc.StatusCode.UNAVAILABLE.value[0] for update in updates)


def test_complete_with_the_sessions_id_shares_its_suggestions(
    stream: Stream, channel: grpc.Channel, engine: CountingEngine
) -> None:
    engine.allow(12)
    whole, _ = stream.suggestion(stream.open("7", session_id="shared"))
    request = pb.CompleteRequest(prefix="78", session_id="shared", sampling=pb.Sampling(max_tokens=12))
    [chunk] = completion_pb2_grpc.CompletionServiceStub(channel).Complete(request, timeout=WAIT_S)
    assert (chunk.text, chunk.source) == (whole[1:], pb.SOURCE_SESSION)


def test_quiet_states_get_no_suggestion(stream: Stream, engine: CountingEngine) -> None:
    stream.open("7", quiet=True)
    stream.type(1, "x", quiet=True)
    stream.send(move=pb.MoveCursor(cursor=0, quiet=True))
    engine.allow(12)
    assert stream.suggestion(stream.type(2, " 3"))[0] == expected_text("3", 12)
    assert len(engine.seen) == 1


LOST = "open the document again with its text"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"seq": 3, "move": pb.MoveCursor()}, "event 3 came after event 1; expected event 2"),
        ({"seq": 1, "move": pb.MoveCursor()}, "event 1 came after event 1; expected event 2"),
        ({"move": pb.MoveCursor(cursor=9)}, "the cursor is at 9, outside the text"),
        ({"edit": pb.EditDocument(patches=[pb.Patch(start=9, end=9)])}, "a patch's start is at 9, outside the text"),
        ({"edit": pb.EditDocument(patches=[pb.Patch(text="\0")])}, "the document has a NUL character at 0"),
        ({"edit": pb.EditDocument(length=2)}, "the text has 1 UTF-16 code units after the edit; expected 2"),
        ({"edit": pb.EditDocument(patches=[pb.Patch(text="x" * 20_000)])}, "the document has 20,001 bytes"),
        ({}, "event 2 has nothing in it that this server knows; expected one of open, edit, move, shown, "),
    ],
)
def test_an_event_that_does_not_fit_is_told_once_and_the_stream_goes_on_when_opened_again(
    stream: Stream, engine: CountingEngine, event: dict[str, Any], message: str
) -> None:
    engine.allow(12)
    stream.suggestion(stream.open("7"))
    number = stream.send(**event)
    update = stream.problem()
    assert (update.seq, update.problem.code, update.problem.needs_text) == (number, 3, True)
    assert update.problem.message.startswith(message)
    stream.type(0, "ignored until the text is there")
    engine.allow(12)
    assert stream.suggestion(stream.open("20"))[0] == expected_text("20", 12)


def test_a_session_needs_an_open_document(stream: Stream) -> None:
    stream.type(0, "x")
    assert stream.problem().problem.message == (
        "event 1 is about a document that is not open here: it was never opened, was closed, was forgotten since "
        f"sessions are bounded, or another stream opened the session; {LOST}"
    )


def test_after_close_the_document_is_not_open(stream: Stream, server: InProcessServer) -> None:
    stream.open("7", quiet=True)
    stream.send(close=pb.CloseDocument())
    stream.send(move=pb.MoveCursor())
    assert "was closed" in stream.problem().problem.message


def test_two_streams_on_one_session_never_mix_their_texts(
    stream: Stream, channel: grpc.Channel, engine: CountingEngine
) -> None:
    engine.allow(12)
    stream.suggestion(stream.open("7", session_id="one"))
    second = Stream(channel)
    engine.allow(12)
    second.suggestion(second.open("20", session_id="one"))
    stream.type(1, "x")
    assert "another stream opened the session" in stream.problem().problem.message
    engine.allow(12)
    assert second.suggestion(second.type(2, "x"))[1] == pb.SOURCE_MODEL
    second.end()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "x" * 20_001}, "the document has 20,001 bytes; expected at most 20,000"),
        ({"text": "\0"}, "the document has a NUL character at 0; expected text"),
        ({"text": "7", "cursor": 2}, "the cursor is at 2, outside the text"),
        ({"text": "7", "session_id": "x" * 200}, "session_id has 200 characters"),
        ({"text": "7", "max_tokens": 100_000}, "max_tokens is 100000"),
    ],
)
def test_a_document_that_cannot_be_opened_says_why_and_the_next_can(
    stream: Stream, engine: CountingEngine, fields: dict[str, Any], message: str
) -> None:
    stream.open(**fields)
    update = stream.problem()
    assert (update.problem.code, update.problem.needs_text) == (3, True)
    assert update.problem.message.startswith(message)
    engine.allow(12)
    assert stream.suggestion(stream.open("7"))[0] == expected_text("7", 12)


def test_bytes_that_are_no_event_are_told_and_the_stream_goes_on(stream: Stream, engine: CountingEngine) -> None:
    stream.send_bytes(b"\x12\x02\xc3\x28")
    update = stream.problem()
    assert update.problem.message.startswith("the message of 4 bytes is not a SessionEvent")
    engine.allow(12)
    stream.suggestion(stream.open("7"))


def test_a_message_larger_than_the_server_takes_ends_the_stream(stream: Stream) -> None:
    stream.open("x" * (LIMIT + 1))
    with pytest.raises(grpc.RpcError) as raised:
        next(stream.call)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_the_engine_refuses_or_fails_is_a_problem_of_that_state_only(
    stream: Stream, engine: CountingEngine
) -> None:
    stream.open("unservable")
    update = stream.problem()
    assert (update.seq, update.problem.code, update.problem.needs_text) == (1, 3, False)
    assert update.problem.message == "the prompt cannot be served"
    stream.send(edit=pb.EditDocument(patches=[pb.Patch(start=0, end=10, text="7")], cursor=1))
    engine.wait_until_running(1)
    engine.fails_with = "broken"
    engine.allow()
    assert stream.problem().problem.message == "the engine failed the request: broken"
    state = stream.type(1, "1")
    engine.allow(12)
    assert stream.suggestion(state)[0] == expected_text("71", 12)


def test_a_defect_names_an_incident_and_the_stream_goes_on(
    stream: Stream,
    server: InProcessServer,
    engine: CountingEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a secret of the code")

    with monkeypatch.context() as patched:
        patched.setattr(server.app.completer, "complete", fail)
        stream.open("7")
        problem = stream.problem().problem
    assert problem.message.startswith("the suggestion failed unexpectedly; see incident ")
    assert (problem.code, "a secret" in problem.message, "a secret of the code" in caplog.text) == (13, False, True)
    engine.allow(12)
    assert stream.suggestion(stream.type(1, " 3"))[0] == expected_text("3", 12)


def test_a_defect_of_the_stream_itself_ends_it_and_names_an_incident(
    stream: Stream, server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app.sessions, "document", None)
    stream.open("7")
    with pytest.raises(grpc.RpcError) as raised:
        next(stream.call)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details().startswith("the request failed unexpectedly; see incident ")
    monkeypatch.undo()


def test_a_full_server_says_when_to_try_again(
    stream: Stream, server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise BusyError("full", retry_after_s=0.25)

    monkeypatch.setattr(server.app.admission, "place", refuse)
    stream.open("7")
    problem = stream.problem().problem
    assert (problem.code, problem.retry_after_ms) == (8, 250)


def test_what_became_of_suggestions_is_counted_by_source(
    stream: Stream, server: InProcessServer, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(server.app.metrics, "count_suggestion", lambda *counted: told.append(counted))
    engine.allow(12)
    state = stream.open("7")
    stream.suggestion(state)
    typed = stream.type(1, "8")
    stream.suggestion(typed)
    stream.send(shown=pb.SuggestionShown(suggestion=state))
    stream.send(accepted=pb.SuggestionAccepted(suggestion=state))
    stream.send(accepted=pb.SuggestionAccepted(suggestion=typed, length=1))
    stream.send(rejected=pb.SuggestionRejected(suggestion=typed))
    stream.send(accepted=pb.SuggestionAccepted(suggestion=typed, length=99))
    problem = stream.problem().problem
    assert problem.message == (
        f"99 UTF-16 code units of suggestion {typed} were accepted; expected at most "
        f"{len(expected_text('7', 12)) - 1}, which is all of it; leave the length out for all of it"
    )
    stream.send(shown=pb.SuggestionShown(suggestion=99))
    update = stream.problem()
    assert update.problem.message == (
        "suggestion 99 was not pushed, or long ago; expected the seq of one of the last "
        f"{MAX_SUGGESTIONS} suggestions of this document; leave the event out"
    )
    assert not update.problem.needs_text
    counted = {tuple(call) for call in told}
    assert counted == {
        ("shown", "model"),
        ("accepted", "model"),
        ("partly_accepted", "session"),
        ("rejected", "session"),
    }
    engine.allow(12)
    assert stream.suggestion(stream.send(move=pb.MoveCursor(cursor=0)))[0] == expected_text("", 12)


def test_accepted_text_is_looked_for_again_after_a_while(
    stream: Stream, server: InProcessServer, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.session_service.STILL_THERE_S", 0.02)
    told: list[Any] = []
    monkeypatch.setattr(server.app.metrics, "count_suggestion", lambda *counted: told.append(counted))
    engine.allow(12)
    state = stream.open("7")
    text, _ = stream.suggestion(state)
    stream.type(1, text, quiet=True)
    stream.send(accepted=pb.SuggestionAccepted(suggestion=state))
    wait_until(lambda: ("kept", "model") in told)
    stream.send(edit=pb.EditDocument(patches=[pb.Patch(start=1, end=4, text="")], cursor=1, quiet=True))
    stream.send(accepted=pb.SuggestionAccepted(suggestion=state))
    wait_until(lambda: ("gone", "model") in told)


@pytest.mark.parametrize("how", ["cancel", "end", "close the channel"])
@pytest.mark.parametrize("moment", ["before anything", "waiting", "writing", "done"])
def test_a_stream_that_goes_away_at_any_moment_leaves_nothing_running(
    server: InProcessServer, engine: CountingEngine, how: str, moment: str
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stream = Stream(channel)
        if moment != "before anything":
            state = stream.open("7", session_id="s")
            engine.wait_until_running(1)
        if moment == "writing":
            engine.allow()
            assert next(stream.call).suggestion.text == "8 "
        elif moment == "done":
            engine.allow(12)
            stream.suggestion(state)
        if how == "end":
            stream.end()
            assert list(stream.call) == []
        elif how == "cancel":
            stream.call.cancel()
        else:
            channel.close()
        stream.end()
    engine.wait_until_empty()
    if moment != "before anything":
        assert list(engine.ends.values()) == ["finished" if moment == "done" else "cancelled"]

    wait_until(lambda: server.app.sessions.document("", "s") is None)


def test_an_outbox_keeps_one_suggestion_and_few_problems_however_slow_the_reader_is() -> None:
    async def scenario() -> None:
        outbox, gate, written = Outbox(), asyncio.Event(), list[pb.SessionUpdate]()

        async def write(message: bytes) -> None:
            await gate.wait()
            written.append(pb.SessionUpdate.FromString(message))

        for state in range(1, 50):
            outbox.begin(state)
            for text in "abc":
                outbox.put_part(state, AnswerPart(request_id="", text=text))
        outbox.put_part(3, AnswerPart(request_id="", text="of an older state"))
        for _ in range(MAX_PROBLEMS):
            outbox.put_problem(49, ValueError("p"))
        waiting = asyncio.create_task(outbox.wait_for_room())
        writing = asyncio.create_task(outbox.write_all(write))
        await asyncio.sleep(0.01)
        assert written == []
        gate.set()
        await waiting
        await asyncio.to_thread(wait_until, lambda: len(written) > MAX_PROBLEMS)
        writing.cancel()
        assert [update.WhichOneof("update") for update in written] == ["problem"] * MAX_PROBLEMS + ["suggestion"]
        assert (written[-1].seq, written[-1].suggestion.text) == (49, "abc")

    asyncio.run(scenario())


def test_a_full_outbox_makes_its_client_wait() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        for _ in range(MAX_PROBLEMS):
            await outbox.wait_for_room()
            outbox.put_problem(1, ValueError("p"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await outbox.wait_for_room()

    asyncio.run(scenario())
