"""Outcomes: how late answers enter the figures, and when a suggestion counts as right."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.outcomes import (
    Outcome,
    count_endings,
    judge_line,
    judge_next_chars,
    percentile,
    summarise,
    to_row,
    wait_times_s,
)
from loadtest.traces import Keystroke


def outcome(number: int, **values: Any) -> Outcome:
    """Return an answer of the model that came after 0.05 s and was whole after 0.1 s, for a key that lived 0.2 s."""
    usual: dict[str, Any] = {
        "user": 0,
        "at_s": 0.2 * number,
        "clock_error_s": 0.001,
        "live_s": 0.2,
        "first_text_s": 0.05,
        "ended_s": 0.1,
        "text": "abc",
        "source": "model",
        "is_from_model": True,
        "is_cut_short": False,
        "num_typed": 0,
        "num_computed_tokens": 4,
        "error": None,
        "error_kind": None,
        "matches_next_chars": True,
        "matches_line": None,
    }
    return Outcome(number=number, **(usual | values))


def cancelled(number: int, **values: Any) -> Outcome:
    nothing = {"first_text_s": None, "ended_s": None, "text": "", "source": "", "num_computed_tokens": None}
    return outcome(number, **(nothing | {"matches_next_chars": None} | values))


def waits(*outcomes: Outcome) -> list[float]:
    return [wait_times_s(outcomes)[each.user, each.number] for each in outcomes]


def test_a_keystroke_that_is_served_waits_for_its_own_first_text() -> None:
    assert waits(outcome(0)) == [0.05]


def test_a_wait_goes_on_with_the_next_keystroke() -> None:
    assert waits(cancelled(0), cancelled(1, live_s=0.3), outcome(2)) == pytest.approx([0.55, 0.35, 0.05])


def test_text_that_came_too_late_serves_nobody() -> None:
    assert waits(outcome(0, first_text_s=0.21, ended_s=None), outcome(1)) == pytest.approx([0.25, 0.05])


def test_a_wait_that_never_ends_has_no_length() -> None:
    assert waits(outcome(0), cancelled(1), cancelled(2)) == [0.05, math.inf, math.inf]


def test_users_do_not_end_each_others_waits() -> None:
    assert waits(cancelled(0, user=0), outcome(0, user=1), outcome(1, user=0)) == pytest.approx([0.25, 0.05, 0.05])


def test_an_error_does_not_end_a_wait() -> None:
    failed = outcome(0, first_text_s=None, text="", error="full", error_kind="busy", live_s=1.0)
    assert waits(failed, outcome(1)) == [1.05, 0.05]


def test_an_empty_answer_ends_a_wait_and_is_told_apart() -> None:
    empty = outcome(0, first_text_s=None, text="", ended_s=0.08)
    assert waits(cancelled(-1), empty) == pytest.approx([0.28, 0.08])
    assert summarise([empty, outcome(1)], users=1)["empty_share"] == 0.5


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 5), st.floats(0, 1)), min_size=1, max_size=20))
def test_waits_are_those_of_the_naive_twin(drawn: list[tuple[bool, float, float]]) -> None:
    outcomes = [
        outcome(i, live_s=live_s, first_text_s=share * live_s) if is_served else cancelled(i, live_s=live_s)
        for i, (is_served, live_s, share) in enumerate(drawn)
    ]
    for start, wait_s in enumerate(waits(*outcomes)):
        expected_s = 0.0
        for each in outcomes[start:]:
            if each.first_text_s is not None:
                expected_s += each.first_text_s
                break
            expected_s += each.live_s
        else:
            expected_s = math.inf
        assert wait_s == pytest.approx(expected_s)


def test_the_headline_has_every_figure_under_its_name() -> None:
    stored = outcome(
        2, source="session", is_from_model=False, num_computed_tokens=0, matches_next_chars=False, matches_line=True
    )
    lost = outcome(3, first_text_s=None, text="", source="", error="gone", error_kind="lost", num_computed_tokens=None)
    all_four = [cancelled(0), outcome(1), stored, lost]
    assert summarise(all_four, users=2) == {
        "first_text_p50_ms": 50.0,
        "first_text_p95_ms": None,
        "on_time_share": 0.5,
        "answered_without_model_share": 0.25,
        "first_text_without_model_p95_ms": 50.0,
        "matches_next_5_chars_share": pytest.approx(2 / 3),
        "matches_line_share": 1.0,
        "matches_next_5_chars_by_model_share": 1.0,
        "matches_next_5_chars_without_model_share": 0.0,
        "matches_line_without_model_share": 1.0,
        "tokens_computed_per_keystroke": None,
        "tokens_computed_per_ended_answer": 2.0,
        "cancelled_share": 0.25,
        "empty_share": 0.0,
        "errors": 1,
        "keystrokes": 4,
        "users": 2,
        "clock_error_p50_ms": 1.0,
        "clock_error_p95_ms": 1.0,
        "clock_error_max_ms": 1.0,
    }
    assert count_endings(all_four) == {"cancelled before any text": 1, "model": 1, "session": 1, "lost": 1}


def test_what_there_was_nothing_of_has_no_share() -> None:
    figures = summarise([outcome(0)], users=1)
    assert figures["matches_next_5_chars_without_model_share"] is None
    assert figures["matches_line_share"] is None
    empty = summarise([], users=1)
    assert (empty["keystrokes"], empty["on_time_share"], empty["first_text_p50_ms"]) == (0, None, None)


def test_a_failed_answer_of_no_model_is_no_answer_without_a_model() -> None:
    failed = outcome(0, is_from_model=False, error="gone", error_kind="lost")
    assert summarise([failed], users=1)["answered_without_model_share"] == 0


def test_a_row_has_the_wait_and_the_keystrokes_own_time() -> None:
    row = to_row(cancelled(3), math.inf)
    assert (row["first_text_ms"], row["own_first_text_ms"], row["on_time"]) == (None, None, False)
    assert row["ending"] == "cancelled before any text"
    assert to_row(cancelled(3, text="a", first_text_s=0.3), 0.5)["ending"] == "cancelled while writing"
    assert to_row(outcome(0), 0.05)["first_text_ms"] == 50


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(i) for i in range(1, 21)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 10, 19, 20]
    assert percentile([], 0.5) is None
    assert percentile([1.0, math.inf], 0.5) == 1.0


def key(before: str = "x = ", after: str = "", *, next_chars: str = "", line: str | None = None) -> Keystroke:
    return Keystroke(before=before, after=after, document="0", next_chars=next_chars, line=line)


@pytest.mark.parametrize(
    ("keystroke", "text", "is_whole", "judged"),
    [
        (key(next_chars="abcde"), "abcdefgh", False, True),
        (key(next_chars="abcde"), "abcdX", True, False),
        (key(next_chars="abcde"), "abcd", False, None),  # more of it may come
        (key(next_chars="abcde"), "abcd", True, False),
        (key(next_chars="abcde"), "", True, False),
        (key(next_chars=""), "abcde", True, None),  # nothing was typed there
        (key(next_chars="ab", after=");\n}"), "ab", True, True),
        (key(next_chars="ab", after=");\n}"), "abc", True, False),
        (key(next_chars="ab", after=");\n}"), "ab);\n", True, True),
        (key(next_chars="ab", after=")"), "ab", True, True),
        (key(next_chars="  ", after="     "), "", True, False),  # no suggestion is never a right one
    ],
)
def test_the_next_characters_are_judged_with_what_stands_behind_the_cursor(
    keystroke: Keystroke, text: str, is_whole: bool, judged: bool | None
) -> None:
    assert judge_next_chars(keystroke, text, is_whole=is_whole) is judged


@pytest.mark.parametrize(
    ("keystroke", "text", "is_whole", "judged"),
    [
        (key(line="x = 5"), "5", True, True),
        (key(line="x = 5"), "5", False, None),
        (key(line="x = 5"), "5\ny", False, True),
        (key(line="x = 5"), "5  \nmore", True, True),
        (key(line="x = 5"), "56", True, False),
        (key(line="x = 5"), "", True, False),
        (key(line=None), "5", True, None),
        (key("f(", ")\n", line="f(a)"), "a", True, True),
        (key("f(", ")\n", line="f(a)"), "a)", True, False),
        (key("y\nx = ", "\nz", line="x = 5"), "5", True, True),
        (key("x = ", line="y = 5"), "5", True, False),  # the head was changed later
    ],
)
def test_a_line_is_judged_as_it_would_read(
    keystroke: Keystroke, text: str, is_whole: bool, judged: bool | None
) -> None:
    assert judge_line(keystroke, text, is_whole=is_whole) is judged
