"""Evaluation against a dialect that answers as it is told."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest import evaluate
from loadtest.dialects import Reply
from loadtest.errors import DialectError
from loadtest.evaluate import (
    MOST_TOKENS,
    Evaluation,
    Outcome,
    ask,
    count_sources,
    first_texts_ms,
    language_key,
    query_of,
    summarise,
)
from loadtest.report import Result
from loadtest.rows import Row, RowContext, Rows, Skipped, read_rows, sample
from tests.loadtest.scripted_dialect import Forever, Script, ScriptedDialect

INFILLING = Path(__file__).parents[3] / "shared/data/human-eval-infilling/HumanEval-SingleLineInfilling.jsonl.gz"
LOST = Reply(error="nobody there", error_kind="lost")
REFUSED = Reply(error="too long", error_kind="refused")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_RETRY_S", 0.0)


def a_row(before: str, solution: str, **fields: Any) -> Row:
    return Row(prompt=before, suffix="", canonical_solution=solution, **fields)


def outcome_of(row: Row, script: Script) -> tuple[Outcome, ScriptedDialect]:
    dialect = ScriptedDialect(otherwise=script)
    return asyncio.run(ask(dialect, row)), dialect


def run(rows: Sequence[Row], dialect: ScriptedDialect, *, concurrency: int = 1) -> Evaluation:
    evaluation = Evaluation(rows, concurrency=concurrency)
    asyncio.run(evaluation.run(dialect))
    return evaluation


def result_of(evaluation: Evaluation, skipped: Sequence[Skipped] = ()) -> Result:
    return summarise(evaluation, Rows(usable=evaluation.rows, skipped=tuple(skipped)), command="evaluate")


def test_a_row_is_asked_with_all_it_has_and_room_for_any_right_answer() -> None:
    context = (RowContext(path="b.py", text="y = 1\n"),)
    query = query_of(a_row("x = ", "ü\n", path="a.py", language="python", context=context))
    assert (query.before, query.path, query.language, query.max_tokens) == ("x = ", "a.py", "python", 3 + 16)
    assert [(chunk.path, chunk.text) for chunk in query.context] == [("b.py", "y = 1\n")]
    assert query_of(a_row("", "x" * 10_000)).max_tokens == MOST_TOKENS


def test_outer_white_space_does_not_count_and_inner_does() -> None:
    assert outcome_of(a_row("", "    return x\n"), "return x  ")[0].is_exact_match
    assert not outcome_of(a_row("", "return x"), "return  x")[0].is_exact_match


def test_a_row_of_one_line_is_scored_by_the_first_line_that_has_text() -> None:
    outcome, _ = outcome_of(a_row("", "  y = 2\n"), ["\n", "  y =", " 2\nz", " = 3\n", "more"])
    assert (outcome.answer, outcome.is_exact_match, outcome.edit_similarity) == ("\n  y = 2", True, 1.0)
    assert outcome.reply.source == "model"


def test_the_stream_of_a_row_of_one_line_is_stopped_after_its_line() -> None:
    outcome, dialect = outcome_of(a_row("", "a"), Forever("b", after="a\n"))
    assert (outcome.answer, dialect.num_cancelled) == ("a", 1)
    assert outcome.reply.source == "model"


def test_what_happens_after_the_line_does_not_matter() -> None:
    reply = Reply(text="a\nb", source="exact", is_from_model=False, is_cut_short=True, error="late", error_kind="lost")
    outcome, dialect = outcome_of(a_row("", "a"), reply)
    assert (outcome.is_exact_match, outcome.reply.source, dialect.num_cancelled) == (True, "exact", 0)
    assert (outcome.reply.error, outcome.reply.is_cut_short) == (None, False)


def test_a_row_of_several_lines_is_scored_by_the_whole_answer() -> None:
    row = a_row("", "if x:\n    y()\n")
    assert outcome_of(row, ["if x:\n", "    y()"])[0].is_exact_match
    longer, dialect = outcome_of(row, ["if x:\n", "    y()\n", "z()\n"])
    assert not longer.is_exact_match
    assert 0 < longer.edit_similarity < 1
    assert dialect.num_cancelled == 0


def test_an_answer_without_text_has_no_latency_and_is_wrong() -> None:
    evaluation = run([a_row("", "a")], ScriptedDialect(otherwise=""))
    headline = result_of(evaluation).headline
    assert (headline["exact_match"], headline["edit_similarity"], headline["empty_answers"]) == (0.0, 0.0, 1)
    assert (headline["first_text_p50_ms"], headline["first_text_p95_ms"], headline["errors"]) == (None, None, 0)


def test_the_first_text_is_timed_and_not_the_end() -> None:
    async def slowly() -> Outcome:
        dialect = ScriptedDialect(otherwise=["", "a", "b"])
        answer = dialect._answer

        async def delayed(script: Script, on_text: Any) -> Reply:
            await asyncio.sleep(0.05)
            reply = await answer(script, on_text)
            await asyncio.sleep(0.05)
            return reply

        dialect._answer = delayed  # type: ignore[method-assign]
        return await ask(dialect, a_row("", "ab"))

    outcome = asyncio.run(slowly())
    assert outcome.first_text_s is not None
    assert 0.05 <= outcome.first_text_s < outcome.total_s - 0.045


def test_an_error_counts_as_wrong_and_is_shown_even_when_text_had_come() -> None:
    rows = [a_row("1", "a"), a_row("2", "a"), a_row("3", "a b")]
    broken = Reply(text="a b", first_text_s=0.1, error="it broke", error_kind="failed")
    result = result_of(run(rows, ScriptedDialect({"1": "a", "2": REFUSED, "3": broken})))
    headline = result.headline
    assert (headline["rows"], headline["errors"], headline["exact_match"]) == (3, 2, pytest.approx(1 / 3))
    assert headline["edit_similarity"] == pytest.approx(1 / 3)
    assert "error, counted as wrong: 1 x too long" in result.notes
    assert [(row["error"], row["error_kind"], row["edit_similarity"]) for row in result.rows] == [
        (None, None, 1.0),
        ("too long", "refused", 0.0),
        ("it broke", "failed", 0.0),
    ]
    assert not result.partial


def test_languages_have_figures_of_their_own() -> None:
    languages = ["Python", "python", "C++", "c#", "TypeScript React", None, "中"]
    rows = [a_row(str(i), "a", language=language) for i, language in enumerate(languages)]
    headline = result_of(run(rows, ScriptedDialect({"0": "a", "2": "a", "5": "a"}))).headline
    assert {name: value for name, value in headline.items() if name.startswith("exact_match")} == {
        "exact_match": pytest.approx(3 / 7),
        "exact_match_cpp": 1.0,
        "exact_match_csharp": 0.0,
        "exact_match_python": 0.5,
        "exact_match_typescript_react": 0.0,
        "exact_match_unnamed": 0.0,
    }
    assert language_key(" F# ") == "fsharp"


def test_rows_are_asked_and_kept_in_the_order_of_the_file() -> None:
    rows = [a_row(str(i), "a\nb", line=i) for i in range(20)]
    dialect = ScriptedDialect({str(i): ["a"] * (1 + i * 7 % 5) for i in range(20)})
    evaluation = run(rows, dialect, concurrency=4)
    assert [query.before for query in dialect.queries] == [row.prompt for row in rows]
    assert [outcome.row.line for outcome in evaluation.outcomes] == list(range(20))
    assert dialect.most_running == 4
    assert "first_text: measured with 4 requests at once" in result_of(evaluation).notes


def test_a_server_that_dies_ends_the_run_with_what_was_done() -> None:
    rows = [a_row(str(i), "a") for i in range(100)]
    dialect = ScriptedDialect({str(i): "a" for i in range(10)}, otherwise=LOST)
    evaluation = run(rows, dialect)
    result = result_of(evaluation)
    assert len(dialect.queries) == 13
    assert evaluation.given_up == "3 answers in a row were lost; the last: nobody there"
    assert (result.partial, result.headline["rows"], result.headline["errors"]) == (True, 13, 3)
    assert result.headline["exact_match"] == pytest.approx(10 / 13)
    assert result.notes[0] == "not asked: 87 rows; 3 answers in a row were lost; the last: nobody there"


def test_a_server_that_hangs_ends_the_run_too_and_requests_at_once_count_as_one_loss() -> None:
    rows = [a_row(str(i), "a") for i in range(100)]
    timed_out = Reply(error="no answer in time", error_kind="deadline")
    dialect = ScriptedDialect(otherwise=timed_out)
    evaluation = run(rows, dialect, concurrency=8)
    assert 10 <= len(dialect.queries) <= 10 + 7
    assert evaluation.given_up


def test_a_server_that_comes_back_is_asked_on() -> None:
    rows = [a_row(str(i), "a") for i in range(9)]
    evaluation = run(rows, ScriptedDialect({"2": "a", "5": "a", "8": "a"}, otherwise=LOST))
    assert (evaluation.given_up, len(evaluation.outcomes)) == ("", 9)


def test_what_makes_every_query_pointless_ends_the_run() -> None:
    evaluation = run([a_row("1", "a"), a_row("2", "a"), a_row("3", "a")], ScriptedDialect({"2": DialectError("no")}))
    assert (evaluation.given_up, len(evaluation.outcomes)) == ("no", 1)


def test_an_interrupt_keeps_what_was_done() -> None:
    evaluation = Evaluation([a_row("1", "a"), a_row("2", "a\nb"), a_row("3", "a")])

    async def interrupted() -> None:
        asking = asyncio.ensure_future(evaluation.run(ScriptedDialect({"1": "a", "2": Forever("x")})))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asking

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    result = result_of(evaluation)
    assert (result.partial, result.headline["rows"], result.headline["exact_match"]) == (True, 1, 1.0)
    assert result.notes[0] == "not asked: 2 rows; the run was interrupted"


def test_a_run_without_any_answer_has_no_figures_made_up() -> None:
    headline = result_of(Evaluation([a_row("1", "a")])).headline
    assert headline == {
        "exact_match": None,
        "edit_similarity": None,
        "rows": 0,
        "first_text_p50_ms": None,
        "first_text_p95_ms": None,
        "empty_answers": 0,
        "errors": 0,
        "skipped": 0,
    }


def test_skipped_lines_are_counted_and_their_reasons_named() -> None:
    skipped = [Skipped(line=i, reason="not JSON") for i in range(2, 9)] + [Skipped(line=9, reason="blank")]
    result = result_of(run([a_row("1", "a")], ScriptedDialect(otherwise="a")), skipped)
    assert (result.headline["skipped"], result.headline["rows"], result.headline["exact_match"]) == (8, 1, 1.0)
    assert result.notes[-2:] == ["skipped: 7 x not JSON (line 2, 3, 4, 5, 6, ...)", "skipped: 1 x blank (line 9)"]


def test_a_long_list_of_errors_and_reasons_is_cut() -> None:
    rows = [a_row(str(i), "a") for i in range(7)]
    dialect = ScriptedDialect({str(i): Reply(error=f"error {i}", error_kind="failed") for i in range(7)})
    notes = result_of(run(rows, dialect), [Skipped(line=i, reason=f"reason {i}") for i in range(7)]).notes
    assert {"errors of 2 more kinds", "skipped for 2 more reasons"} <= set(notes)


def test_a_sample_is_named_as_one_with_its_uncertainty() -> None:
    rows = tuple(a_row(str(i), "a", line=i) for i in range(100))
    evaluation = run(sample(rows, 50), ScriptedDialect({str(i): "a" for i in range(0, 100, 2)}))
    notes = summarise(evaluation, Rows(usable=rows, skipped=()), command="").notes
    assert notes[0] == "rows: 50 of the 100 usable ones, a random sample that is always the same"
    assert notes[1].startswith("exact_match: 0.")


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert evaluate._interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)  # values of the published formula
    assert evaluate._interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert evaluate._interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)


def test_times_and_answers_are_told_apart_by_source() -> None:
    stored = Reply(text="a", source="exact", is_from_model=False)
    unknown = Reply(text="a")
    script: dict[str, Script] = {"1": "a", "2": stored, "3": REFUSED, "4": unknown, "5": "a"}
    evaluation = run([a_row(name, "a b") for name in script], ScriptedDialect(script))
    assert count_sources(evaluation.outcomes) == {"model": 2, "exact": 1, "error": 1, "not said": 1}
    assert {name: len(times) for name, times in first_texts_ms(evaluation.outcomes).items()} == {
        "model": 2,
        "exact": 1,
        "not said": 1,
    }
    assert "first_text: 1 answers came without the model" in result_of(evaluation).notes


@pytest.mark.shared_data
@pytest.mark.skipif(not INFILLING.exists(), reason=f"the infilling rows are not at {INFILLING}")
def test_an_oracle_is_right_on_all_infilling_rows_and_its_neighbour_on_few() -> None:
    rows = read_rows(INFILLING)
    right = ScriptedDialect({row.prompt: row.canonical_solution for row in rows.usable})
    headline = summarise(run(rows.usable, right, concurrency=8), rows, command="").headline
    assert (headline["exact_match"], headline["edit_similarity"], headline["rows"]) == (1.0, 1.0, 1033)
    wrong = ScriptedDialect({row.prompt: row.suffix.split("\n")[0] + "\n" for row in rows.usable})
    headline = summarise(run(rows.usable, wrong, concurrency=8), rows, command="").headline
    assert headline["exact_match"] is not None
    assert headline["edit_similarity"] is not None
    assert headline["exact_match"] < 0.05
    assert 0.2 < headline["edit_similarity"] < 0.5
