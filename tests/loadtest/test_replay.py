"""The replay in virtual time: what is asked when, what is cancelled, what is measured, and how it ends early."""

import asyncio
from collections.abc import Callable

import pytest

from loadtest.dialects import Query, Reply
from loadtest.editing_trace import EditingTrace, Patch
from loadtest.outcomes import summarise
from loadtest.replay import LOST_AFTER, SILENCE_S, Replay, ReplaySettings
from loadtest.verification import Verification
from tests.loadtest.handmade_trace import trace_of, typed
from tests.loadtest.timed_dialect import Answer, TimedDialect
from tests.loadtest.virtual_time import run_virtual

LOST = Answer(reply=Reply(error="nobody there", error_kind="lost"))


def writes(text: str, *, first_s: float = 0.02, whole_s: float = 0.05) -> Answer:
    """Return an answer that comes in two parts."""
    half = len(text) // 2
    return Answer([(first_s, text[:half]), (whole_s - first_s, text[half:])])


def replay_of(
    trace: EditingTrace, answer: Callable[[Query], Answer] | Answer, **settings: object
) -> tuple[Replay, TimedDialect]:
    """Run a replay to its end in virtual time."""
    replay = Replay(trace, ReplaySettings(**settings))  # type: ignore[arg-type]
    dialect = TimedDialect(answer if callable(answer) else lambda query: answer)
    run_virtual(replay.run(dialect))
    return replay, dialect


def test_each_keystroke_asks_at_its_time_with_the_text_around_the_cursor() -> None:
    trace = trace_of(typed("ab", at=1, gap_s=0.5), start="<>")
    replay, dialect = replay_of(trace, writes("text"), max_tokens=7, path="a.py")
    assert [(time_s, query.before, query.after) for time_s, query in dialect.asked] == [
        (0.0, "<a", ">"),
        (0.5, "<ab", ">"),
    ]
    assert {(query.max_tokens, query.path, query.session_id) for _, query in dialect.asked} == {
        (7, "a.py", "replay-0-user-0-0")
    }
    assert len(replay.outcomes) == replay.num_planned == 2
    assert replay.given_up == ""


def test_an_answer_is_measured_from_its_keystroke() -> None:
    replay, _ = replay_of(trace_of(typed("ab", gap_s=0.5)), writes("text"))
    [first, _] = replay.outcomes
    assert first.first_text_s == pytest.approx(0.02)
    assert first.ended_s == pytest.approx(0.05)
    assert (first.live_s, first.text, first.source, first.num_computed_tokens) == (0.5, "text", "model", 4)
    assert first.clock_error_s == pytest.approx(0)


def test_the_next_keystroke_cancels_what_is_open_and_inherits_the_wait() -> None:
    answer = writes("text", first_s=0.3, whole_s=0.4)
    replay, dialect = replay_of(trace_of(typed("abc")), answer)
    assert [time_s for time_s, _ in dialect.cancelled] == pytest.approx([0.1, 0.2])
    assert [outcome.is_cancelled for outcome in replay.outcomes] == [True, True, False]
    figures = summarise(replay.outcomes, users=1)
    assert figures["first_text_p95_ms"] == pytest.approx(500)
    assert figures["first_text_p50_ms"] == pytest.approx(400)
    assert (figures["on_time_share"], figures["cancelled_share"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_text_that_had_come_before_the_cancel_is_kept_and_judged() -> None:
    answer = Answer([(0.01, "bcdefg"), (9.0, "more")])
    replay, _ = replay_of(trace_of(typed("abcdef", gap_s=0.5)), answer)
    first = replay.outcomes[0]
    assert (first.is_cancelled, first.text, first.source, first.num_computed_tokens) == (True, "bcdefg", "", None)
    assert first.matches_next_chars is True
    assert first.matches_line is None


def test_a_change_that_asks_nothing_also_ends_a_request() -> None:
    edits = [*typed("a"), (0.1, [Patch(0, 1, "")]), *typed("b", begin_s=5)]
    replay, dialect = replay_of(trace_of(edits), writes("text", first_s=0.3))
    assert [time_s for time_s, _ in dialect.asked] == pytest.approx([0, 5])
    assert [time_s for time_s, _ in dialect.cancelled] == pytest.approx([0.1])
    assert summarise(replay.outcomes, users=1)["first_text_p95_ms"] == pytest.approx(400)  # 0.1 s and 0.3 s


def test_speed_makes_gaps_shorter_and_not_answers() -> None:
    replay, dialect = replay_of(trace_of(typed("ab", gap_s=1.0)), writes("text"), speed=4.0)
    assert [time_s for time_s, _ in dialect.asked] == pytest.approx([0, 0.25])
    assert replay.outcomes[0].first_text_s == pytest.approx(0.02)


def test_a_loop_that_is_late_is_measured_from_the_time_that_was_due() -> None:
    async def busy(replay: Replay, dialect: TimedDialect) -> None:
        loop = asyncio.get_running_loop()

        def block() -> None:  # as a callback would that computes for 0.3 s
            loop._jumping.now_s += 0.3  # type: ignore[attr-defined]

        loop.call_at(0.45, block)
        await replay.run(dialect)

    replay = Replay(trace_of(typed("ab", gap_s=0.5)), ReplaySettings())
    run_virtual(busy(replay, TimedDialect(lambda query: writes("text"))))
    second = replay.outcomes[1]
    assert second.clock_error_s == pytest.approx(0.25)
    assert second.first_text_s == pytest.approx(0.27)
    assert summarise(replay.outcomes, users=1)["clock_error_max_ms"] == pytest.approx(250)


def test_users_type_at_different_places_with_sessions_of_their_own() -> None:
    trace = trace_of(typed("".join(chr(ord("a") + i % 26) for i in range(200))))
    replay, dialect = replay_of(trace, writes("text"), users=3, keystrokes=10)
    by_session: dict[str, list[Query]] = {}
    for _, query in dialect.asked:
        by_session.setdefault(query.session_id, []).append(query)
    assert sorted(by_session) == [f"replay-0-user-{user}-0" for user in range(3)]
    assert all(len(queries) == 10 for queries in by_session.values())
    assert len({queries[0].before for queries in by_session.values()}) == 3
    assert len(replay.outcomes) == replay.num_planned == 30
    for user in range(3):
        assert [each.number for each in replay.outcomes if each.user == user] == list(range(10))


def test_the_same_seed_asks_the_same_at_the_same_times() -> None:
    trace = trace_of(typed("".join(chr(ord("a") + i % 26) for i in range(300))))

    def asked(seed: int, first_s: float) -> list[tuple[float, Query]]:
        answer = writes("text", first_s=first_s, whole_s=first_s + 0.01)
        return replay_of(trace, answer, users=2, keystrokes=20, seed=seed)[1].asked

    assert asked(1, 0.01) == asked(1, 0.35)
    assert asked(1, 0.01) != asked(2, 0.01)


def test_errors_are_counted_and_typing_goes_on() -> None:
    busy = Answer(reply=Reply(error="full", error_kind="busy"))
    replay, _ = replay_of(trace_of(typed("abcdefgh")), busy)
    assert [outcome.error_kind for outcome in replay.outcomes] == ["busy"] * 8
    figures = summarise(replay.outcomes, users=1)
    assert (figures["errors"], figures["on_time_share"], figures["first_text_p50_ms"]) == (8, 0.0, None)


def test_a_server_that_dies_ends_the_replay_early_with_what_was_done() -> None:
    trace = trace_of(typed("x" * 100, gap_s=1.0))
    replay, dialect = replay_of(trace, lambda query: writes("text") if len(query.before) <= 20 else LOST)
    assert replay.given_up == f"{LOST_AFTER} answers in a row were lost; the last: nobody there"
    assert len(replay.outcomes) == len(dialect.asked) == 20 + LOST_AFTER
    assert summarise(replay.outcomes, users=1)["errors"] == LOST_AFTER


def hanging_after(num_answered: int, *, is_there: bool, gap_s: float = 0.2, keystrokes: int = 200) -> Replay:
    """Replay against a server that says nothing any more; `is_there` says whether it still answers for its health."""
    never = writes("text", first_s=1e6, whole_s=2e6)
    replay = Replay(trace_of(typed("x" * keystrokes, gap_s=gap_s)), ReplaySettings())
    dialect = TimedDialect(lambda query: writes("text") if len(query.before) <= num_answered else never)
    dialect.is_there = is_there
    run_virtual(replay.run(dialect))
    return replay


def test_a_server_that_hangs_while_keystrokes_cancel_each_other_ends_the_replay() -> None:
    replay = hanging_after(20, is_there=False)
    assert replay.given_up.endswith(" s, and the server does not answer for its health")
    assert SILENCE_S <= len(replay.outcomes) * 0.2 - 20 * 0.2 <= 2 * SILENCE_S


def test_a_slow_server_that_answers_for_its_health_is_measured_to_the_end() -> None:
    replay = hanging_after(20, is_there=True)
    assert (replay.given_up, len(replay.outcomes)) == ("", 200)


def test_a_server_that_hangs_near_the_end_is_noticed_there() -> None:
    assert hanging_after(8, is_there=False, keystrokes=10).given_up
    assert not hanging_after(10, is_there=False, keystrokes=10).given_up


def test_the_hash_of_what_was_asked_follows_text_time_and_user() -> None:
    def digest(typing: str, gap_s: float, **settings: object) -> str:
        return replay_of(trace_of(typed(typing, gap_s=gap_s)), writes("text"), **settings)[0].requests_digest()

    digests = [digest("abcd", 1.0), digest("abcx", 1.0), digest("abcd", 2.0), digest("abcd", 1.0, max_tokens=3)]
    assert len(set(digests)) == 4
    assert digest("abcd", 2.0, users=3) == digest("abcd", 2.0, users=3) != digest("abcd", 2.0)
    assert digest("abcd", 2.0, speed=2.0, users=3) != digest("abcd", 2.0, users=3)


def test_a_dead_server_ends_all_users_at_once() -> None:
    trace = trace_of(typed("x" * 100, gap_s=5.0))
    replay, _ = replay_of(trace, LOST, users=3)
    assert replay.given_up
    assert LOST_AFTER <= len(replay.outcomes) < LOST_AFTER + 3


def test_losses_that_are_not_in_a_row_do_not_end_the_replay() -> None:
    trace = trace_of(typed("x" * 60))
    replay, _ = replay_of(trace, lambda query: LOST if len(query.before) % 2 else writes("text"))
    assert (replay.given_up, len(replay.outcomes)) == ("", 60)


def test_cancelling_a_replay_keeps_what_was_done_and_leaves_nothing_running() -> None:
    replay = Replay(trace_of(typed("x" * 50, gap_s=1.0)), ReplaySettings())
    dialect = TimedDialect(lambda query: writes("text", first_s=0.5, whole_s=0.8))

    async def interrupt() -> None:
        running = asyncio.ensure_future(replay.run(dialect))
        await asyncio.sleep(10.6)
        running.cancel()
        await asyncio.wait([running])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(interrupt())
    assert len(replay.outcomes) == 10
    assert [time_s for time_s, _ in dialect.cancelled] == pytest.approx([10.6])


def test_processor_time_is_measured() -> None:
    replay, _ = replay_of(trace_of(typed("x" * 400)), writes("text"))
    assert 0 < replay.typing_cpu_s <= replay.cpu_s
    assert replay.typing_cpu_s / 400 < 0.001


def test_answers_without_the_model_are_verified_afresh() -> None:
    stored = Reply(source="session", is_from_model=False)

    def answer(query: Query) -> Answer:
        if query.is_fresh:
            return Answer([(0.1, "wrong" if query.before == "abc" else "text")])
        return Answer([(0.0, "text")], stored) if len(query.before) > 1 else Answer([(0.0, "text")])

    replay, dialect = replay_of(trace_of(typed("abcd")), answer)
    assert replay.num_stored == 3
    verification, checked = Verification(), list[int]()
    run_virtual(replay.verify(dialect, verification, on_checked=checked.append))
    assert checked == [1, 2, 3]
    assert [query.before for _, query in dialect.asked if query.is_fresh] == ["ab", "abc", "abcd"]
    assert verification.counts == {"same": 2, "near-tie": 0, "false hit": 1}
    assert [outcome.number for outcome in verification.false_hits] == [2]
