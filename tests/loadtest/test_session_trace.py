"""Completion sessions: which states ask, and what is known of what came after."""

import json
from typing import Any

import pytest

from loadtest.errors import TraceError
from loadtest.session_trace import SessionTrace
from loadtest.traces import PAUSE_CAP_S, Keystroke


def state(second: float, prompt: str | None, *, name: str = "Shown", session: int = 0) -> dict[str, Any]:
    return {
        "session": session,
        "seq": 0,
        "TimeGenerated": f"2022-08-08T16:00:{second:06.3f}Z",
        "StateName": name,
        "CurrentPrompt": prompt,
        "CurrentSuggestion": "ignored",
    }


def decode(*states: dict[str, Any]) -> SessionTrace:
    return SessionTrace.decode("\n".join(map(json.dumps, states)).encode() + b"\n", name="t")


def keystrokes_of(trace: SessionTrace) -> list[Keystroke]:
    moments = trace.moments(first=0, count=len(trace.keystroke_times_s))
    return [moment.keystroke for moment in moments if moment.keystroke is not None]


def test_shown_states_ask_with_their_prompt_and_nothing_after_it() -> None:
    trace = decode(state(0, "a"), state(1, "a", name="Replay"), state(2, None), state(3, "ab"))
    assert [(key.before, key.after, key.document) for key in keystrokes_of(trace)] == [("a", "", "0"), ("ab", "", "0")]
    assert trace.keystroke_times_s == [0, 3]


def test_pauses_are_capped_and_sessions_follow_each_other_after_one() -> None:
    trace = decode(state(0, "a"), state(45, "b"), state(50, "x", session=1), state(51, "y", session=1))
    assert trace.keystroke_times_s == [0, PAUSE_CAP_S, 2 * PAUSE_CAP_S, 2 * PAUSE_CAP_S + 1]
    assert [key.document for key in keystrokes_of(trace)] == ["0", "0", "1", "1"]


def test_the_next_prompt_tells_what_was_typed() -> None:
    first, *_ = keystrokes_of(decode(state(0, "x = "), state(1, "x = "), state(2, "x = compute(1)\ny"), state(3, "z")))
    assert (first.next_chars, first.line) == ("compu", "x = compute(1)")


def test_a_line_that_goes_on_is_known_only_at_a_pause() -> None:
    going_on = keystrokes_of(decode(state(0, "x"), state(1, "x = 1"), state(1.5, "x = 12")))
    at_pause = keystrokes_of(decode(state(0, "x"), state(1, "x = 1"), state(4, "x = 12")))
    assert [key.line for key in going_on] == [None, "x = 12", None]
    assert [key.line for key in at_pause] == ["x = 1", "x = 12", None]


def test_a_prompt_that_does_not_go_on_tells_nothing() -> None:
    first, last = keystrokes_of(decode(state(0, "abc"), state(1, "xyzxyzxyz")))
    assert (first.next_chars, first.line, last.next_chars, last.line) == ("", None, "", None)


def test_few_added_characters_are_not_the_next_five() -> None:
    assert keystrokes_of(decode(state(0, "a"), state(9, "abcd")))[0].next_chars == ""


def test_moments_begin_anywhere_and_go_on_at_the_beginning() -> None:
    trace = decode(state(0, "a"), state(1, "b"), state(3, "c"))
    moments = list(trace.moments(first=1, count=3))
    assert [moment.at_s for moment in moments] == [0, 2, 2 + PAUSE_CAP_S, 3 + PAUSE_CAP_S]
    assert [moment.keystroke and moment.keystroke.before for moment in moments] == ["b", "c", "a", None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            json.dumps(state(0, "a")) + "\nnot json",
            "line 2 of t is no state of a completion session: JSON is malformed",
        ),
        (
            json.dumps(state(0, "a") | {"CurrentPrompt": 5}),
            "line 1 of t is no state of a completion session: Expected `str | null`, got `int` - at `$.CurrentPrompt`",
        ),
        (
            json.dumps(state(0, "a") | {"TimeGenerated": "noon"}),
            "line 1 of t is no state of a completion session: Invalid RFC3339 encoded datetime",
        ),
        (
            json.dumps(state(0, "a", name="Rejected")),
            "t has no Shown state with a prompt; expected prompts to ask with",
        ),
    ],
)
def test_what_is_no_session_is_refused(data: str, message: str) -> None:
    with pytest.raises(TraceError) as raised:
        SessionTrace.decode(data.encode(), name="t")
    assert str(raised.value).startswith(message)
