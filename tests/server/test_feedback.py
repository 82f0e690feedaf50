"""What clients tell of suggestions: counted, recorded without text, refused where it makes no sense."""

import asyncio
from pathlib import Path

import pytest

from server.client import AsyncClient, Client
from server.errors import InvalidRequestError
from server.feedback import Fate, read_feedback
from server.predictor import Guess
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.wire import MAX_FATES, decode_feedback
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer


def test_fates_are_counted_and_recorded_without_text(tmp_path: Path) -> None:
    with (
        InProcessServer(CountingEngine(), feedback_directory=str(tmp_path)) as server,
        Client(server.address) as client,
    ):
        answer = client.complete("secret = 78 ", max_tokens=3)
        for event in ("shown", "accepted", "kept"):
            assert client.tell(answer.request_id, event)
        assert client.tell(answer.request_id, "accepted", num_accepted=2)
        assert not client.tell("never asked", "shown")
    records = [record for record in read_feedback(tmp_path) if isinstance(record, Fate)]
    assert [record.event for record in records] == ["shown", "accepted", "kept", "partly_accepted"]
    assert {(record.source, record.num_chars, record.text) for record in records} == {("model", len(answer.text), "")}
    assert [record.num_accepted for record in records] == [0, len(answer.text), 0, 2]
    written = (tmp_path / "feedback.jsonl").read_text()
    assert answer.text.strip() not in written
    assert answer.request_id not in written


def test_text_is_recorded_where_that_was_chosen(tmp_path: Path) -> None:
    config = {"feedback_directory": str(tmp_path), "feedback_has_text": True}
    with InProcessServer(CountingEngine(), **config) as server, Client(server.address) as client:
        answer = client.complete("78 ", max_tokens=3)
        client.tell(answer.request_id, "rejected")
    assert [record.text for record in read_feedback(tmp_path) if isinstance(record, Fate)] == [answer.text]


def test_the_predictor_outlives_the_server(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            InProcessServer(CountingEngine(), feedback_directory=str(tmp_path)) as server,
            Client(server.address) as client,
        ):
            client.complete("one = 7\ntwo = 7\none = ", session_id="s", max_tokens=3)
            client.complete("one = 7\ntwo = 7\none = 7", session_id="s", max_tokens=3)
    assert (tmp_path / "predictor.json").exists()
    assert any(isinstance(record, Guess) for record in read_feedback(tmp_path))


def test_a_client_on_an_event_loop_can_tell_too() -> None:
    async def run(address: str) -> bool:
        async with AsyncClient(address) as client:
            answer = await client.complete("7", max_tokens=2)
            return await client.tell(answer.request_id, "gone")

    with InProcessServer(CountingEngine()) as server:
        assert asyncio.run(run(server.address))


def test_what_cannot_be_counted_is_refused() -> None:
    many = pb.FeedbackRequest(fates=[pb.SuggestionFate(fate=pb.FATE_SHOWN)] * (MAX_FATES + 1))
    for message, words in (
        (b"\xff", "is not a FeedbackRequest"),
        (many.SerializeToString(), "1,001 fates were told at once; expected at most 1,000; send fewer"),
        (
            pb.FeedbackRequest(fates=[pb.SuggestionFate()]).SerializeToString(),
            "fates[0].fate is 0; expected one of FATE_SHOWN",
        ),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            decode_feedback(message)
        assert words in str(caught.value)
