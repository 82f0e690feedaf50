"""Limits of one request, and the bound on how many are in flight."""

import asyncio
from typing import Any

import pytest

from engine.types import ContextChunk, SamplingParams
from server.admission import Admission
from server.config import ServerConfig
from server.errors import BusyError, DeadlineError, InvalidRequestError
from server.types import CompletionRequest, SamplingOptions


def check(
    request: CompletionRequest | None = None, *, deadline_s: float | None = None, config: ServerConfig | None = None
) -> SamplingParams:
    return Admission(config or ServerConfig()).check(request or CompletionRequest(before=""), deadline_s=deadline_s)


def test_what_is_left_out_takes_the_servers_defaults() -> None:
    sampling = check(config=ServerConfig(default_max_tokens=17))
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.max_tokens) == (0.0, 0, 1.0, 17)


def test_a_seed_that_is_left_out_is_another_one_each_time_and_a_given_one_is_kept() -> None:
    assert len({check().seed for _ in range(8)}) > 1
    assert check(CompletionRequest(before="", sampling=SamplingOptions(seed=2**31 - 1))).seed == 2**31 - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected 0 (greedy) to 2; 0 is greedy"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; expected 0 (all tokens) or more; leave it out to keep all"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0 and at most 1; leave it out to keep all"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1; expected 0 to 2147483647; leave it out for a random one"),
        ({"seed": 2**31}, "seed is 2147483648"),
        ({"max_tokens": 0}, "max_tokens is 0; expected 1 to 1024; ask for fewer, or raise server.greatest_max_tokens"),
        ({"max_tokens": -5}, "max_tokens is -5"),
        ({"max_tokens": 1025}, "max_tokens is 1025"),
        ({"stop": ("",)}, "stop[0] has 0 characters; expected 1 to 256; leave it out or shorten it"),
        ({"stop": ("a", "b" * 257)}, "stop[1] has 257 characters"),
        ({"stop": ("a",) * 17}, "the request has 17 stop texts; expected at most 16; send fewer"),
    ],
)
def test_sampling_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        check(CompletionRequest(before="", sampling=SamplingOptions(**options)))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"request_id": "r" * 129}, "request_id has 129 characters; expected at most 128; send a shorter one"),
        ({"session_id": "s" * 129}, "session_id has 129 characters"),
        ({"language": "l" * 129}, "language has 129 characters"),
        ({"path": "p" * 1025}, "path has 1,025 characters"),
        ({"path": "a\nb"}, "path is 'a\\nb'; expected printable characters without line breaks; send it without them"),
        ({"context": (ContextChunk(path="\x00", text=""),)}, "context[0].path is '\\x00'"),
    ],
)
def test_names_that_would_break_logs_or_prompts_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        check(CompletionRequest(before="", **fields))
    assert message in str(raised.value)


def test_the_bytes_of_all_texts_are_counted_together() -> None:
    config = ServerConfig(max_text_bytes=10)
    context = (ContextChunk(path="a", text="é"),)
    check(CompletionRequest(before="1234", after="5678", context=context), config=config)
    with pytest.raises(InvalidRequestError) as raised:
        check(CompletionRequest(before="12345", after="5678", context=context), config=config)
    assert str(raised.value) == (
        "prefix, suffix and context have 11 bytes; expected at most 10; "
        "send the text around the cursor, or raise server.max_text_bytes"
    )


def test_too_many_context_chunks_are_refused() -> None:
    chunks = (ContextChunk(path="a", text=""),) * 3
    with pytest.raises(InvalidRequestError) as raised:
        check(CompletionRequest(before="", context=chunks), config=ServerConfig(max_context_chunks=2))
    assert str(raised.value) == (
        "the request has 3 context chunks; expected at most 2; "
        "send the most useful ones, or raise server.max_context_chunks"
    )


def test_a_deadline_that_has_passed_is_refused_at_the_door() -> None:
    check(deadline_s=0.1)
    with pytest.raises(DeadlineError, match="the deadline had passed before the request was read"):
        check(deadline_s=0.0)


def test_a_place_is_free_again_however_its_block_is_left() -> None:
    admission = Admission(ServerConfig(max_in_flight=1))
    with admission.place():
        assert admission.num_in_flight == 1
    with pytest.raises(KeyError), admission.place():
        raise KeyError
    assert admission.num_in_flight == 0


def test_one_request_more_than_there_are_places_is_refused_with_a_hint() -> None:
    admission = Admission(ServerConfig(max_in_flight=1))
    with admission.place(), pytest.raises(BusyError) as raised, admission.place():
        pass
    assert raised.value.retry_after_s > 0
    assert str(raised.value) == (
        "the requests in flight are at their limit of 1; try again in 0.50 s, or raise server.max_in_flight"
    )


def test_the_hint_when_to_try_again_follows_how_long_requests_take() -> None:
    admission = Admission(ServerConfig(max_in_flight=1))
    for _ in range(100):
        with admission.place():
            pass
    with admission.place(), pytest.raises(BusyError) as raised, admission.place():
        pass
    assert raised.value.retry_after_s < 0.1


def test_waiting_for_idle_ends_when_the_last_place_is_left_or_the_time_is_over() -> None:
    async def scenario() -> None:
        admission = Admission(ServerConfig())
        assert await admission.wait_idle(timeout_s=0)
        with admission.place():
            assert not await admission.wait_idle(timeout_s=0.01)
            waiting = asyncio.create_task(admission.wait_idle(timeout_s=10))
            await asyncio.sleep(0)
        assert await waiting

    asyncio.run(scenario())
