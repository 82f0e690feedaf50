"""Verification: when a stored answer agrees with a fresh one."""

import pytest

from loadtest.dialects import Query, Reply, TextPart
from loadtest.traces import Keystroke
from loadtest.verification import NEAR_TIE, Verdict, Verification, compare
from tests.loadtest.test_outcomes import outcome
from tests.loadtest.timed_dialect import Answer, TimedDialect
from tests.loadtest.virtual_time import run_virtual

SURE, TORN = 10 * NEAR_TIE, 0.1 * NEAR_TIE


def fresh(text: str, *gaps: float | None, is_cut_short: bool = False) -> Reply:
    """Return a fresh answer of one-character parts with the gaps given, the rest sure, and an end."""
    parts = [TextPart(num_chars=1, logit_gap=gap) for gap in gaps[: len(text)]]
    parts += [TextPart(num_chars=1, logit_gap=SURE)] * (len(text) - len(parts))
    end = TextPart(num_chars=0, logit_gap=gaps[len(text)] if len(gaps) > len(text) else SURE)
    return Reply(text=text, source="model", is_cut_short=is_cut_short, parts=(*parts, end))


@pytest.mark.parametrize(
    ("stored_text", "is_cut_short", "model", "verdict"),
    [
        ("abc", False, fresh("abc"), "same"),
        ("abc", False, fresh("abd"), "false hit"),
        ("abc", False, fresh("abd", SURE, SURE, TORN), "near-tie"),
        ("abc", False, fresh("abd", TORN, TORN, SURE), "false hit"),
        ("abc", True, fresh("abcdef"), "same"),  # the rest of an earlier answer: its limit was reached sooner
        ("abc", False, fresh("abcdef"), "false hit"),
        ("abc", False, fresh("abcdef", SURE, SURE, SURE, TORN), "near-tie"),
        ("abcdef", False, fresh("abc", is_cut_short=True), "same"),
        ("abcdef", False, fresh("abc"), "false hit"),
        ("abcdef", False, fresh("abc", SURE, SURE, SURE, TORN), "near-tie"),
        ("abX", True, fresh("abcdef"), "false hit"),
        ("abc", False, Reply(text="abd", source="model"), "false hit"),  # nothing is known that would excuse it
        ("abc", False, fresh("abd", SURE, SURE, None), "false hit"),
        ("", False, fresh(""), "same"),
    ],
)
def test_answers_agree_or_part_where_the_model_was_torn_or_not(
    stored_text: str, is_cut_short: bool, model: Reply, verdict: Verdict
) -> None:
    stored = outcome(0, text=stored_text, is_cut_short=is_cut_short, is_from_model=False, source="tier 1")
    assert compare(stored, model) == verdict


@pytest.mark.parametrize(("text", "verdict"), [("uv w", "same"), ("uv x", "false hit"), ("ux w", "false hit")])
def test_the_rest_of_a_suggestion_is_asked_for_where_the_suggestion_began(text: str, verdict: Verdict) -> None:
    verification = Verification()
    keystroke = Keystroke(before="a uv", after="b", document="d", next_chars="", line=None)
    stored = outcome(0, text=" w", num_typed=2, is_from_model=False, source="session")
    dialect = TimedDialect(lambda query: Answer(texts=[(0.0, text)], reply=fresh(text)))
    run_virtual(verification.check(dialect, Query(before="", session_id="s"), keystroke, stored))
    assert verification.counts[verdict] == verification.num_checked == 1
    assert [query.before for _, query in dialect.asked] == ["a "]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(error="gone", error_kind="lost"), "gone"),
        (Reply(source="tier 1", is_from_model=False), "asked afresh, the server answered from: tier 1"),
        (Reply(is_from_model=False), "asked afresh, the server answered from: it does not say"),
    ],
)
def test_what_could_not_be_checked_is_told(reply: Reply, reason: str) -> None:
    verification = Verification()
    keystroke = Keystroke(before="a", after="b", document="d", next_chars="", line=None)
    stored = outcome(0, is_from_model=False)
    dialect = TimedDialect(lambda query: Answer(reply=reply))
    run_virtual(verification.check(dialect, Query(before="", session_id="s"), keystroke, stored))
    assert (verification.num_checked, verification.unchecked) == (0, [reason])
    [(_, query)] = dialect.asked
    assert (query.before, query.after, query.session_id, query.is_fresh) == ("a", "b", "s-d", True)
