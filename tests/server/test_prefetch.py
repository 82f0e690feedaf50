"""What is done ahead: guessed, begun, served, learned from, and given up; checked against asking afresh."""

import asyncio

from server.config import ServerConfig
from server.types import SamplingOptions
from tests.server.counting_engine import expected_text
from tests.server.test_completer import Rig, play
from tests.server.test_sessions import GREEDY, answer, request

AHEAD = ServerConfig(trim="off", chunk_interval_s=0.0, prefetch=True)
LINES = "first = 7\nsecond = 7\nthird = 7\nfirst = 7\nsecond = "
"""Behind it a 7 was typed each time before; the engine, which counts on, will suggest 8."""


def counters(rig: Rig, name: str) -> float:
    """Return a counter's sum over its labels."""
    families = rig.metrics.registry.collect()
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == f"cloudcomplete_{name}_total"
    )


async def settle(rig: Rig) -> None:
    """Wait until nothing is done ahead any more."""
    for _ in range(200):
        await asyncio.sleep(0.005)
        if not rig.completer.prefetcher.num_running:
            return
    raise AssertionError("work ahead does not end")


def test_a_key_that_followed_the_same_text_before_is_answered_ahead() -> None:
    async def scenario(rig: Rig) -> None:
        await answer(rig, request(LINES))
        await settle(rig)
        assert await answer(rig, request(LINES + "7")) == (expected_text("7", 12), "prefetch")
        assert [one.before for one in rig.engine.seen if one.priority == "interactive"] == [LINES]

    play(scenario, config=AHEAD)


def test_what_was_answered_ahead_is_what_the_engine_says_when_asked_afresh() -> None:
    async def scenario(rig: Rig) -> None:
        await answer(rig, request(LINES))
        await settle(rig)
        later = request(LINES + "7")
        text, source = await answer(rig, later)
        fresh = request(LINES + "7", session_id="other", is_fresh=True)
        assert (source, text) == ("prefetch", (await answer(rig, fresh))[0])
        assert (await answer(rig, later))[1] == "session"  # it is an answer like any other now
        assert counters(rig, "prefetch_hits") == 1
        assert counters(rig, "prefetch_used_tokens") == 12

    play(scenario, config=AHEAD)


def test_work_ahead_waits_for_idleness_and_has_a_lower_priority() -> None:
    async def scenario(rig: Rig) -> None:
        with rig.admission.place():
            await answer(rig, request(LINES))
            await asyncio.sleep(0.05)
            assert len(rig.engine.seen) == 1
        await answer(rig, request(LINES, session_id="later"))
        await settle(rig)
        assert [one.priority for one in rig.engine.seen[:3]] == ["interactive", "interactive", "speculative"]

    play(scenario, config=AHEAD)


def test_a_key_that_was_not_foreseen_cancels_what_is_done_ahead() -> None:
    async def scenario(rig: Rig) -> None:
        asking = asyncio.create_task(answer(rig, request(LINES)))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        rig.engine.allow(12)
        await asking
        await rig.on_thread(rig.engine.wait_for, lambda: len(rig.engine.seen) == 2)
        asking = asyncio.create_task(answer(rig, request(LINES + "5")))
        await rig.on_thread(rig.engine.wait_for, lambda: "cancelled" in rig.engine.ends.values())
        rig.engine.allow(100)
        assert (await asking)[1] == "model"
        await settle(rig)

    play(scenario, config=AHEAD, is_gated=True)


def test_what_is_half_written_ahead_becomes_the_draft() -> None:
    async def scenario(rig: Rig) -> None:
        asking = asyncio.create_task(answer(rig, request(LINES)))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        rig.engine.allow(12)
        await asking
        await rig.on_thread(rig.engine.wait_for, lambda: len(rig.engine.seen) == 2)
        rig.engine.allow(3)
        await rig.on_thread(rig.engine.wait_for, lambda: rig.engine.stats().num_computed_tokens >= 15)
        await asyncio.sleep(0.05)
        asking = asyncio.create_task(answer(rig, request(LINES + "7")))
        await rig.on_thread(rig.engine.wait_for, lambda: len(rig.engine.seen) == 3)
        assert rig.engine.seen[2].draft.startswith(expected_text("7", 2))
        rig.engine.allow(100)
        assert (await asking)[1] == "model"
        await settle(rig)

    play(scenario, config=AHEAD, is_gated=True)


def test_after_a_suggestion_was_taken_whole_its_continuation_is_there() -> None:
    async def scenario(rig: Rig) -> None:
        whole, _ = await answer(rig, request("7", GREEDY))
        await settle(rig)
        for num_typed in range(len(whole) - 16, len(whole)):  # its last characters are typed, one by one
            await answer(rig, request("7" + whole[:num_typed], GREEDY))
            await settle(rig)
        text, source = await answer(rig, request("7" + whole, GREEDY))
        assert source in ("prefetch", "session")  # ahead of this place, or of one shortly before
        assert expected_text(whole, 12).startswith(text)
        assert counters(rig, "accepts") == counters(rig, "accepts_continued_without_model") == 1

    play(scenario, config=AHEAD)


def test_the_predictor_hears_what_became_of_each_guess() -> None:
    async def scenario(rig: Rig) -> None:
        await answer(rig, request(LINES))
        await settle(rig)
        await answer(rig, request(LINES + "7"))
        assert {guess.kind: guess.has_come for guess in rig.guesses} == {
            "key": True,
            "accept": False,
            "newline": False,
        }

    play(scenario, config=AHEAD)


def test_an_editors_closing_bracket_is_learned() -> None:
    async def scenario(rig: Rig) -> None:
        text = "call(1)\nother(1)\ncall(1)\nother"
        await answer(rig, request(text))
        await settle(rig)
        await answer(rig, request(text + "(", after=")"))
        await settle(rig)
        later = text + "(1)\ncall"
        await answer(rig, request(later))
        await settle(rig)
        assert (await answer(rig, request(later + "(", after=")")))[1] == "prefetch"

    play(scenario, config=AHEAD)


def test_nothing_is_done_ahead_when_it_is_off_or_answers_are_drawn_at_random() -> None:
    async def scenario(rig: Rig) -> None:
        await answer(rig, request(LINES, SamplingOptions(max_tokens=3, temperature=1.0, seed=1)))
        await asyncio.sleep(0.02)
        assert len(rig.engine.seen) == 1

    play(scenario, config=AHEAD)
    play(scenario, config=ServerConfig(trim="off", chunk_interval_s=0.0, prefetch=False))


def test_the_threshold_rises_while_work_is_wasted_and_falls_again() -> None:
    async def scenario(rig: Rig) -> None:
        prefetcher = rig.completer.prefetcher
        usual = prefetcher.least_probability
        prefetcher._recent_tokens, prefetcher._recent_used = 1000.0, 100.0
        assert prefetcher.least_probability > usual
        prefetcher._recent_used = 1000.0
        assert prefetcher.least_probability < usual

    play(scenario, config=AHEAD)


def test_the_budgets_factor_scales_what_may_be_wasted() -> None:
    async def scenario(rig: Rig) -> None:
        prefetcher = rig.completer.prefetcher
        prefetcher._recent_tokens, prefetcher._recent_used = 1000.0, 500.0
        usual = prefetcher.least_probability
        prefetcher.budget.factor = lambda: 0.5
        assert prefetcher.least_probability > usual
        prefetcher.budget.factor = lambda: 1.2
        assert prefetcher.least_probability < usual

    play(scenario, config=AHEAD)


def test_every_request_is_one_wait_also_one_that_was_given_up() -> None:
    async def scenario(rig: Rig) -> None:
        waits: list[float] = []
        rig.completer.prefetcher.budget.note_wait = waits.append
        asking = asyncio.create_task(answer(rig, request("7")))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        rig.engine.allow(12)
        assert (await asking)[1] == "model"
        assert len(waits) == 1
        assert (await answer(rig, request("7")))[1] == "session"
        assert len(waits) == 2
        asking = asyncio.create_task(answer(rig, request("x 5", session_id="other")))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert len(waits) == 3

    play(scenario, config=ServerConfig(trim="off", chunk_interval_s=0.0, prefetch=False), is_gated=True)


def test_nothing_is_begun_for_a_session_that_was_forgotten() -> None:
    async def scenario(rig: Rig) -> None:
        asking = asyncio.create_task(answer(rig, request(LINES)))
        await rig.on_thread(rig.engine.wait_until_running, 1)
        rig.engine.allow(12)
        await asking
        await rig.on_thread(rig.engine.wait_for, lambda: len(rig.engine.seen) == 2)
        rig.sessions.close("", "s")
        rig.engine.allow(100)
        await settle(rig)
        await asyncio.sleep(0.02)
        assert len(rig.engine.seen) == 2

    play(scenario, config=AHEAD, is_gated=True)
