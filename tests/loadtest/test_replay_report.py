"""What a replay's result says, beside its figures."""

import pytest

from loadtest import replay_report
from loadtest.dialects import Query, Reply
from loadtest.replay import Replay, ReplaySettings
from loadtest.verification import Verification
from tests.loadtest.handmade_trace import trace_of, typed
from tests.loadtest.timed_dialect import Answer, TimedDialect
from tests.loadtest.virtual_time import run_virtual

TRACE = trace_of(typed("x" * 20, gap_s=1.0))
LOST = Answer(reply=Reply(error="nobody there", error_kind="lost"))


def text_after(delay_s: float, text: str = "xxxxxx", **reply: object) -> Answer:
    return Answer([(delay_s, text)], Reply(source="model", **reply))  # type: ignore[arg-type]


def replayed(*answers: Answer, **settings: object) -> tuple[Replay, TimedDialect]:
    """Replay the trace; the last answer is given again and again."""
    left = list(answers)
    dialect = TimedDialect(lambda query: left.pop(0) if len(left) > 1 else left[0])
    replay = Replay(TRACE, ReplaySettings(**settings))  # type: ignore[arg-type]
    run_virtual(replay.run(dialect))
    return replay, dialect


def test_a_whole_replay_has_figures_rows_and_where_it_was() -> None:
    replay, _ = replayed(text_after(0.1), keystrokes=3)
    result = replay_report.assemble(replay, None, command="cloudcomplete replay t")
    assert result.headline["keystrokes"] == len(result.rows) == 3
    assert result.headline["first_text_p50_ms"] == pytest.approx(100)
    assert result.rows[0]["first_text_ms"] == pytest.approx(100)
    assert (result.partial, result.command) == (False, "cloudcomplete replay t")
    assert result.headline["replay_cpu_per_keystroke_ms"] is not None
    assert "false_hits" not in result.headline
    assert result.notes[0].startswith("user 0: 3 keystrokes from ")
    assert result.notes[1].startswith("matches: of ")


def test_a_replay_that_ended_early_is_partial_and_says_why() -> None:
    replay, _ = replayed(text_after(0.1), LOST)
    result = replay_report.assemble(replay, None, command="")
    assert result.partial
    assert result.notes[0] == "not typed: 14 of 20 keystrokes; 5 answers in a row were lost; the last: nobody there"
    assert "error, lost: 5 x nobody there" in result.notes
    assert "first_text: 5 keystrokes never got any; they count as longer than all others" in result.notes
    assert "tokens_computed_per_ended_answer: of 0 answers that ended and told" in result.notes


def test_what_keystrokes_cost_is_the_servers_word_for_all_that_was_asked_or_nothing() -> None:
    replay, _ = replayed(text_after(0.1, num_prompt_tokens=8, num_reused_tokens=6, num_generated_tokens=2))
    silent = replay_report.assemble(replay, None, command="")
    assert silent.headline["tokens_computed_per_keystroke"] is None
    assert silent.headline["tokens_computed_per_ended_answer"] == 4
    assert (
        "tokens_computed_per_keystroke: not measured; no metrics of the server to read; see --metrics" in silent.notes
    )
    replay.computed_tokens.count = 130
    told = replay_report.assemble(replay, None, command="")
    assert told.headline["tokens_computed_per_keystroke"] == 130 / 20
    assert not any(note.startswith("tokens_computed_per_keystroke") for note in told.notes)


def test_what_was_asked_is_told_as_a_hash() -> None:
    notes = [
        replay_report.assemble(replayed(answer, keystrokes=4, users=2, seed=seed)[0], None, command="").notes[-1]
        for answer, seed in ((text_after(0.1), 1), (text_after(3.0), 1), (text_after(0.1), 2))
    ]
    assert notes[0].startswith("requests: 8 issued, SHA-256 of what and when ")
    assert notes[0] == notes[1] != notes[2]


def test_many_users_and_many_kinds_of_errors_are_named_in_part() -> None:
    errors = [Answer(reply=Reply(error=f"no room {number}", error_kind="busy")) for number in range(9)]
    replay, _ = replayed(*errors, text_after(0.1), users=7, keystrokes=2)
    notes = replay_report.assemble(replay, None, command="").notes
    assert "and 2 more users elsewhere" in notes
    assert "errors of 4 more kinds" in notes


def test_the_first_users_are_not_moved_by_more_of_them() -> None:
    one, _ = replayed(text_after(0.1), keystrokes=2)
    many, _ = replayed(text_after(0.1), keystrokes=2, users=3)
    assert one.stretches[0] == many.stretches[0]


def test_verification_is_told_with_its_false_hits() -> None:
    def answer(query: Query) -> Answer:
        if query.is_fresh:
            return text_after(0.0, "yes" if len(query.before) < 3 else "no")
        return Answer([(0.0, "yes")], Reply(source="tier 1", is_from_model=False))

    replay, dialect = Replay(TRACE, ReplaySettings()), TimedDialect(answer)
    run_virtual(replay.run(dialect))
    verification = Verification()
    run_virtual(replay.verify(dialect, verification))
    result = replay_report.assemble(replay, verification, command="")
    assert (result.headline["false_hits"], result.headline["verified_answers"]) == (18, 20)
    assert (
        "verify: 20 answers that came without the model: 2 as the model's, 0 others within a near-tie of 0.05, "
        "18 false hits" in result.notes
    )
    assert "false hit: user 0, keystroke 2, from tier 1: 'yes'" in result.notes
    assert sum(note.startswith("false hit: ") for note in result.notes) == 5


def test_what_could_not_be_verified_is_told() -> None:
    nothing = replay_report.assemble(replayed(text_after(0.1), keystrokes=1)[0], Verification(), command="")
    assert nothing.notes[-1] == "verify: no answer came without the model, so there was nothing to verify"
    assert (nothing.headline["false_hits"], nothing.headline["verified_answers"]) == (0, 0)
    stored, _ = replayed(Answer([(0.1, "x")], Reply(source="session", is_from_model=False)), keystrokes=5)
    verification = Verification()
    verification.unchecked += ["gone", "gone"]
    assert replay_report.assemble(stored, verification, command="").notes[-2:] == [
        "verify: 3 not checked: the run ended early",
        "verify: 2 not checked: gone",
    ]


def test_latencies_are_told_for_all_keystrokes_and_for_each_source() -> None:
    replay, _ = replayed(text_after(2.5), text_after(0.1), keystrokes=3)
    assert replay_report.latencies_ms(replay.outcomes) == {
        "all keystrokes": pytest.approx([1100, 100, 100]),
        "from model": pytest.approx([100, 100]),
    }
