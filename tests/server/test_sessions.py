"""What a session answers without the engine, adopts, supersedes and forgets; checked against asking afresh."""

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import ContextChunk
from server.config import ServerConfig
from server.document import Document
from server.errors import RequestCancelledError
from server.sessions import MAX_SUGGESTIONS, Sessions
from server.types import AnswerPart, CompletionRequest, SamplingOptions
from tests.server.counting_engine import expected_text
from tests.server.test_completer import Rig, play

GREEDY = SamplingOptions(max_tokens=12)


def request(before: str, sampling: SamplingOptions = GREEDY, **fields: Any) -> CompletionRequest:
    return CompletionRequest(before=before, sampling=sampling, **{"session_id": "s", **fields})


async def answer(rig: Rig, asked: CompletionRequest, tenant: str = "") -> tuple[str, str]:
    """Return the text and the source of a whole answer."""
    parts = [part async for part in rig.completer.complete(asked, deadline_s=None, tenant=tenant)]
    return "".join(part.text for part in parts), parts[-1].source


async def begin(rig: Rig, asked: CompletionRequest, num_running: int = 1) -> tuple[Any, "asyncio.Task[AnswerPart]"]:
    """Ask, and return once the engine works on it: the answer, and its first part to come."""
    parts = rig.completer.complete(asked, deadline_s=None)
    reading = asyncio.create_task(anext(parts))
    await rig.on_thread(rig.engine.wait_until_running, num_running)
    return parts, reading


def test_whoever_types_the_suggestion_gets_its_rest_without_the_engine() -> None:
    async def scenario(rig: Rig) -> None:
        whole, source = await answer(rig, request("x = 7, "))
        assert (whole, source) == (expected_text("x = 7", 12), "model")
        for num_typed in range(len(whole) - 16 + 1):
            assert await answer(rig, request("x = 7, " + whole[:num_typed])) == (whole[num_typed:], "session")
        assert len(rig.engine.seen) == 1

    play(scenario)


def test_a_rest_costs_no_tokens_and_says_why_the_whole_ended() -> None:
    async def scenario(rig: Rig) -> None:
        await answer(rig, request("7"))
        [part] = [part async for part in rig.completer.complete(request("78 9", request_id="r"), deadline_s=None)]
        assert part.request_id == "r"
        assert part.finish is not None
        assert (part.finish.reason, part.finish.usage.num_generated_tokens) == ("length", 0)
        assert part.num_typed == 3

    play(scenario)


def test_a_backspace_brings_the_earlier_suggestion_back() -> None:
    async def scenario(rig: Rig) -> None:
        whole, _ = await answer(rig, request("7"))
        await answer(rig, request("7wrong 3"))
        assert await answer(rig, request("7")) == (whole, "session")
        assert len(rig.engine.seen) == 2

    play(scenario)


def test_what_the_limit_cut_off_answers_only_while_enough_is_left_and_then_is_the_draft() -> None:
    async def scenario(rig: Rig) -> None:
        whole, _ = await answer(rig, request("7"))
        assert (await answer(rig, request("7" + whole[:-16])))[1] == "session"
        assert (await answer(rig, request("7" + whole[:-15])))[1] == "model"
        assert rig.engine.seen[-1].draft == whole[-15:]

    play(scenario)


def test_what_the_model_ended_is_complete_to_its_last_character() -> None:
    async def scenario(rig: Rig) -> None:
        sampling = SamplingOptions(max_tokens=12, stop=("11",))
        assert await answer(rig, request("7", sampling)) == ("8 9 10 ", "model")
        assert await answer(rig, request("78 9 10", sampling)) == (" ", "session")
        assert await answer(rig, request("78 9 10 ", sampling)) == ("", "session")

    play(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"after": "\n"},
        {"path": "a.py"},
        {"language": "go"},
        {"context": (ContextChunk(path="b", text="c"),)},
        {"session_id": "another"},
        {"session_id": ""},
        {"is_fresh": True},
        {"before": "77"},
        {"before": ""},
        {"sampling": SamplingOptions(max_tokens=11)},
        {"sampling": SamplingOptions(max_tokens=12, stop=("99",))},
        {"sampling": SamplingOptions(max_tokens=12, temperature=0.5)},
        {"sampling": SamplingOptions(max_tokens=12, top_k=3)},
        {"sampling": SamplingOptions(max_tokens=12, top_p=0.5)},
    ],
)
def test_a_request_that_differs_in_what_shapes_its_answer_is_asked_of_the_engine(changes: dict[str, Any]) -> None:
    async def scenario(rig: Rig) -> None:
        asked = request("7")
        await answer(rig, asked)
        assert (await answer(rig, msgspec.structs.replace(asked, **changes)))[1] == "model"
        assert len(rig.engine.seen) == 2

    play(scenario)


def test_a_seed_changes_nothing_for_greedy_text() -> None:
    async def scenario(rig: Rig) -> None:
        whole, _ = await answer(rig, request("7"))
        assert await answer(rig, request("7", SamplingOptions(max_tokens=12, seed=4))) == (whole, "session")

    play(scenario)


def test_a_larger_limit_of_tokens_is_met_by_the_engine_where_the_smaller_one_cut_the_answer_off() -> None:
    async def scenario(rig: Rig) -> None:
        await answer(rig, request("7"))
        longer = await answer(rig, request("7", SamplingOptions(max_tokens=13)))
        assert longer == (expected_text("7", 13), "model")
        stop = SamplingOptions(max_tokens=12, stop=("10",))
        ended, _ = await answer(rig, request("7", stop))
        assert await answer(rig, request("7", msgspec.structs.replace(stop, max_tokens=13))) == (ended, "session")

    play(scenario)


def test_text_sampled_with_a_seed_is_never_taken_over_and_without_one_it_is() -> None:
    async def scenario(rig: Rig) -> None:
        seeded = SamplingOptions(max_tokens=12, temperature=0.5, seed=4)
        free = SamplingOptions(max_tokens=12, temperature=0.5)
        asked = [seeded, seeded, free, seeded, free]
        sources = [(await answer(rig, request("7", sampling)))[1] for sampling in asked]
        assert sources == ["model", "model", "model", "model", "session"]

    play(scenario)


def test_another_tenants_session_of_the_same_name_is_another_session() -> None:
    async def scenario(rig: Rig) -> None:
        assert (await answer(rig, request("7"), tenant="a"))[1] == "model"
        assert (await answer(rig, request("7"), tenant="b"))[1] == "model"
        assert (await answer(rig, request("7"), tenant="a"))[1] == "session"
        assert [seen.tenant for seen in rig.engine.seen] == ["a", "b"]

    play(scenario)


def test_a_newer_keystroke_that_does_not_match_cancels_the_older_request() -> None:
    async def scenario(rig: Rig) -> None:
        older, reading = await begin(rig, request("7"))
        rig.engine.allow()
        assert (await reading).text == "8 "
        newer, newer_reading = await begin(rig, request("7x 20"))
        with pytest.raises(RequestCancelledError) as raised:
            await anext(older)
        assert str(raised.value) == (
            "a newer request of the same session took the place of this one; expected one at a time; "
            "use the newer one's answer, or give each open file a session of its own"
        )
        assert list(rig.engine.ends.values()) == ["cancelled"]
        rig.engine.allow(12)
        assert (await newer_reading).text == "21 "
        await newer.aclose()

    play(scenario, is_gated=True)


def test_a_newer_keystroke_that_matches_adopts_what_is_being_written() -> None:
    async def scenario(rig: Rig) -> None:
        older, reading = await begin(rig, request("7"))
        rig.engine.allow(3)
        await reading
        assert [(await anext(older)).text for _ in range(2)] == ["9 ", "10 "]
        await older.aclose()  # the editor gives the older one up and sends the next keystroke
        newer = rig.completer.complete(request("78 "), deadline_s=None)
        assert (await anext(newer)).text == "9 10 "
        rig.engine.allow(9)
        rest = [part async for part in newer]
        assert "".join(part.text for part in rest) == expected_text("10", 9)
        assert (rest[-1].source, len(rig.engine.seen)) == ("model", 1)
        assert list(rig.engine.ends.values()) == ["finished"]

    play(scenario, is_gated=True)


def test_the_same_request_asked_twice_at_once_is_computed_once() -> None:
    async def scenario(rig: Rig) -> None:
        answers = [asyncio.create_task(answer(rig, request("7"))) for _ in range(3)]
        await rig.on_thread(rig.engine.wait_until_running, 1)
        rig.engine.allow(12)
        assert await asyncio.gather(*answers) == [(expected_text("7", 12), "model")] * 3
        assert len(rig.engine.seen) == 1

    play(scenario, is_gated=True)


def test_text_that_the_pace_holds_back_is_adopted_too() -> None:
    async def scenario(rig: Rig) -> None:
        older, reading = await begin(rig, request("7"))
        rig.engine.allow(3)
        await reading
        await rig.on_thread(rig.engine.wait_for, lambda: rig.engine.stats().num_computed_tokens == 4)
        newer = rig.completer.complete(request("78 9"), deadline_s=None)
        assert (await anext(newer)).text == " 10 "
        await newer.aclose()
        await older.aclose()

    play(scenario, is_gated=True, config=ServerConfig(trim="off", chunk_interval_s=100.0, session_linger_s=0.0))


def test_a_request_given_up_and_not_adopted_is_cancelled_after_a_moment() -> None:
    async def scenario(rig: Rig) -> None:
        older, reading = await begin(rig, request("7"))
        rig.engine.allow()
        await reading
        await older.aclose()
        assert rig.engine.ends == {}
        await rig.on_thread(rig.engine.wait_until_empty)
        assert list(rig.engine.ends.values()) == ["cancelled"]

    play(scenario, is_gated=True, config=ServerConfig(trim="off", chunk_interval_s=0.0, session_linger_s=0.02))


def test_what_was_cancelled_half_written_answers_nothing_but_is_a_draft() -> None:
    async def scenario(rig: Rig) -> None:
        older, reading = await begin(rig, request("7"))
        rig.engine.allow(2)
        await reading
        await anext(older)
        await older.aclose()
        await rig.on_thread(rig.engine.wait_until_empty)
        rig.engine.allow(12)
        assert (await answer(rig, request("78")))[1] == "model"
        assert rig.engine.seen[-1].draft == " 9 "

    play(scenario, is_gated=True, config=ServerConfig(trim="off", chunk_interval_s=0.0, session_linger_s=0.0))


def test_a_superseded_suggestion_is_the_draft_of_the_next_request() -> None:
    async def scenario(rig: Rig) -> None:
        whole, _ = await answer(rig, request("7"))
        await answer(rig, request("7z"))
        assert rig.engine.seen[-1].draft == whole[1:]

    play(scenario)


def test_what_the_engine_refuses_or_fails_is_told_and_answers_nothing_later() -> None:
    async def scenario(rig: Rig) -> None:
        for _ in range(2):
            with pytest.raises(Exception, match="the prompt cannot be served"):
                await answer(rig, request("unservable"))
        rig.engine.fails_with = "broken"
        with pytest.raises(Exception, match="the engine failed the request: broken"):
            await answer(rig, request("7"))
        assert (await answer(rig, request("7")))[1] == "model"

    play(scenario)


KEYS = st.lists(st.sampled_from(["type on", "type on", "type on", "backspace", "7 ", "x", "other line"]), max_size=25)


@settings(max_examples=60, deadline=None)
@given(keys=KEYS, chars=st.integers(1, 5))
def test_any_typing_gets_what_the_first_suggestion_continues_to(keys: list[str], chars: int) -> None:
    """The twin: every answer of the model is kept with its place, and a rest must be the rest of one of them."""

    async def scenario(rig: Rig) -> None:
        before, shown = "x = 5, ", ""
        told: list[tuple[str, str]] = []
        for key in keys:
            if key == "type on":
                before, shown = before + shown[:chars], shown[chars:]
            elif key == "backspace":
                before = before[: max(1, len(before) - chars)]
            else:
                before += "\n30 " if key == "other line" else key
            num_seen = len(rig.engine.seen)
            shown, source = await answer(rig, request(before))
            if source == "model":
                assert len(rig.engine.seen) == num_seen + 1
                assert shown == expected_text(before, 12)
                told.append((before, shown))
            else:
                assert len(rig.engine.seen) == num_seen
                assert len(shown) >= 16
                assert before + shown in {place + text for place, text in told}

    play(scenario)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["same", "on", "off", "leave"]), st.integers(0, 3)), max_size=12))
def test_however_requests_cross_each_other_each_ends_once_and_nothing_is_left_running(
    steps: list[tuple[str, int]],
) -> None:
    async def scenario(rig: Rig) -> None:
        before = "7"
        reading: list[asyncio.Task[tuple[str, str]]] = []
        asked: list[str] = []
        for number, (key, num_steps) in enumerate(steps):
            if key == "leave" and reading:
                reading[-1].cancel()
            before += {"on": expected_text(before, 1)[:1], "off": f"z{number} "}.get(key, "")
            asked.append(before)
            reading.append(asyncio.create_task(answer(rig, request(before))))
            rig.engine.allow(num_steps)
            await asyncio.sleep(0.001)
        rig.engine.allow(12 * (len(steps) + 1))
        ends = await asyncio.gather(*reading, return_exceptions=True)
        for place, end in zip(asked, ends, strict=True):
            if not isinstance(end, BaseException):
                assert place + end[0] in {seen.before + expected_text(seen.before, 12) for seen in rig.engine.seen}
            else:
                assert isinstance(end, asyncio.CancelledError | RequestCancelledError)
        if reading and not reading[-1].cancelled():
            assert not isinstance(ends[-1], RequestCancelledError)

    play(scenario, is_gated=True, config=ServerConfig(trim="off", chunk_interval_s=0.0, session_linger_s=0.001))


def test_a_session_keeps_so_many_suggestions_and_so_many_bytes() -> None:
    async def scenario(rig: Rig) -> None:
        sessions = rig.sessions
        for number in range(MAX_SUGGESTIONS + 3):
            await answer(rig, request(f"{number} ", SamplingOptions(max_tokens=1)))
        session = sessions.session("", "s")
        assert session.num_bytes <= 20_000
        assert (await answer(rig, request("2 ", SamplingOptions(max_tokens=1))))[1] == "model"
        await answer(rig, request("9 " + "x" * 30_000))
        assert 30_000 < session.num_bytes < 40_000

    play(scenario, config=ServerConfig(trim="off", session_bytes=20_000, chunk_interval_s=0.0))


def test_all_sessions_together_keep_so_many_bytes_and_documents_count() -> None:
    sessions = Sessions(ServerConfig(trim="off", session_bytes=20_000, sessions_bytes=20_000))
    for name in "abc":
        sessions.session("", name).document = Document("x" * 9_000, cursor=0, number=1, max_bytes=10_000)
        sessions.session("", name)
        assert sessions.num_bytes <= 20_000
    assert [sessions.document("", name) is not None for name in "abc"] == [False, True, True]
    for name in "abc":
        sessions.close("", name)
    assert sessions.num_bytes == 0


def test_a_newer_keystroke_cancels_what_is_sampled_with_a_seed_too() -> None:
    async def scenario(rig: Rig) -> None:
        seeded = SamplingOptions(max_tokens=12, temperature=0.5, seed=4)
        older, reading = await begin(rig, request("7", seeded))
        newer = asyncio.create_task(answer(rig, request("7", seeded)))
        with pytest.raises(RequestCancelledError, match="a newer request of the same session"):
            await reading
        rig.engine.allow(12)
        assert (await newer)[1] == "model"
        await older.aclose()

    play(scenario, is_gated=True)


def test_the_session_unused_for_longest_goes_first_when_all_are_too_large_too_many_or_old() -> None:
    now_s = [0.0]
    config = ServerConfig(trim="off", max_sessions=2, session_idle_s=10.0)
    sessions = Sessions(config, clock=lambda: now_s[0])
    first = sessions.session("", "1")
    second = sessions.session("", "2")
    assert sessions.session("", "1") is first
    sessions.session("", "3")
    assert sessions.session("", "1") is first
    assert sessions.session("", "2") is not second
    now_s[0] = 11.0
    sessions.session("", "4")
    assert len(sessions) == 1
    sessions.close("", "4")
    sessions.close("", "4")
    assert len(sessions) == 0


def test_a_forgotten_session_leaves_nothing_running_but_what_is_read() -> None:
    async def scenario(rig: Rig) -> None:
        parts, reading = await begin(rig, request("7"))
        rig.sessions.close("", "s")
        rig.engine.allow(12)
        assert (await reading).text == "8 "
        async with aclosing(parts):
            assert "".join([part.text async for part in parts]) == expected_text("8", 11)
        assert (await answer_later(rig)) == "model"

    async def answer_later(rig: Rig) -> str:
        rig.engine.allow(12)
        return (await answer(rig, request("7")))[1]

    play(scenario, is_gated=True)
