"""Editing histories: what is a keystroke, what stood around it, what came of it, and which files are refused."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.editing_trace import EditingTrace, Patch, apply_patches, num_typed_chars
from loadtest.errors import TraceError
from loadtest.traces import PAUSE_CAP_S, Keystroke, Moment
from tests.loadtest.handmade_trace import encode, history_of, trace_of, typed

Edits = list[tuple[float, list[Patch]]]


def moments_of(trace: EditingTrace) -> list[Moment]:
    return list(trace.moments(first=0, count=len(trace.keystroke_times_s)))


def keystrokes_of(trace: EditingTrace) -> list[Keystroke]:
    return [moment.keystroke for moment in moments_of(trace) if moment.keystroke is not None]


def shown(keystrokes: list[Keystroke]) -> list[str]:
    return [f"{keystroke.before}|{keystroke.after}" for keystroke in keystrokes]


@pytest.mark.parametrize(
    ("inserted", "num_chars"),
    [
        ("a", 1),
        ("\n", 1),
        ("\t", 1),
        ("\N{GRINNING FACE}", 1),
        ("\n\t\t", 3),
        ("\r\n  ", 4),
        ("\n        \n    ", 9),
        ("()", 1),
        ("``", 1),
        ("    ", 4),
        ("", None),
        ("ab", None),
        ("a\n", None),
        ("\n\nx", None),
        ("\n\n\n", None),
        ("         ", None),
        (")(", None),
    ],
)
def test_a_press_of_a_key_types_one_character_or_what_an_editor_makes_of_it(
    inserted: str, num_chars: int | None
) -> None:
    assert num_typed_chars(inserted) == num_chars


def test_every_typed_character_is_a_keystroke_with_the_text_around_it() -> None:
    trace = trace_of(typed("ab", at=1), start="<>")
    assert shown(keystrokes_of(trace)) == ["<a|>", "<ab|>"]
    assert trace.end == "<ab>"


def test_positions_count_characters_not_bytes() -> None:
    trace = trace_of([(0, [Patch(2, 0, "b")])], start="\N{GRINNING FACE}é")
    assert shown(keystrokes_of(trace)) == ["\N{GRINNING FACE}éb|"]


@pytest.mark.parametrize(
    "patches",
    [
        [Patch(0, 0, "pasted")],
        [Patch(0, 1, "")],
        [Patch(0, 2, "xy")],
        [Patch(3, 0, "x"), Patch(0, 0, "x")],
    ],
)
def test_pastes_deletions_and_several_cursors_change_the_text_but_ask_nothing(patches: list[Patch]) -> None:
    trace = trace_of([*typed("a"), (0.1, patches), (0.2, [Patch(0, 0, "z")])], start="123")
    asked = [moment.keystroke is not None for moment in moments_of(trace)]
    assert asked[:3] == [True, False, True]
    assert shown(keystrokes_of(trace))[1] == "z|" + apply_patches("a123", patches)


def test_typing_over_a_selection_is_a_keystroke() -> None:
    assert shown(keystrokes_of(trace_of([(0, [Patch(1, 2, "x")])], start="abcd"))) == ["ax|d"]


def test_the_cursor_stands_between_an_auto_closed_pair_and_in_the_middle_line_of_brackets() -> None:
    trace = trace_of([(0, [Patch(0, 0, "{}")]), (0.2, [Patch(1, 0, "\n  \n")])])
    assert shown(keystrokes_of(trace)) == ["{|}", "{\n  |\n}"]


def test_taking_back_the_edit_before_is_no_keystroke() -> None:
    trace = trace_of([(0, [Patch(0, 1, "")]), (0.1, [Patch(0, 0, "a")]), (0.2, [Patch(1, 0, "b")])], start="a")
    assert shown(keystrokes_of(trace)) == ["ab|"]


def test_typing_another_character_after_a_deletion_is_a_keystroke() -> None:
    trace = trace_of([(0, [Patch(0, 1, "")]), (0.1, [Patch(0, 0, "b")])], start="a")
    assert shown(keystrokes_of(trace)) == ["b|"]


def test_the_next_characters_are_those_typed_at_the_cursor() -> None:
    assert [key.next_chars for key in keystrokes_of(trace_of(typed("abcdefg")))] == [
        "bcdef",
        "cdefg",
        "defg",
        "efg",
        "fg",
        "g",
        "",
    ]


def test_what_was_deleted_again_is_not_among_the_next_characters() -> None:
    edits: Edits = [*typed("ab"), (0.3, [Patch(1, 1, "")]), *typed("cdefg", at=1, begin_s=0.4)]
    assert keystrokes_of(trace_of(edits))[0].next_chars == "cdefg"


def test_the_next_characters_end_where_the_typist_goes_elsewhere() -> None:
    edits: Edits = [*typed("ab", at=5), (0.3, [Patch(0, 0, "x")])]
    assert [key.next_chars for key in keystrokes_of(trace_of(edits, start="12345"))] == ["b", "", ""]


def test_the_closing_half_of_a_pair_is_not_typed_yet() -> None:
    edits: Edits = [*typed("f"), (0.2, [Patch(1, 0, "()")]), *typed("abcd", at=2, begin_s=0.4)]
    assert keystrokes_of(trace_of(edits))[0].next_chars == "(abcd"


def test_a_line_is_known_as_it_stood_at_the_next_pause() -> None:
    edits: Edits = [*typed("ab", at=2), *typed("c", at=4, begin_s=2.2)]
    assert [key.line for key in keystrokes_of(trace_of(edits, start="x\n\ny"))] == ["ab", None, None]


def test_a_gap_that_is_no_pause_does_not_settle_a_line() -> None:
    edits: Edits = [*typed("ab"), *typed("c", at=2, begin_s=2.0)]
    assert [key.line for key in keystrokes_of(trace_of(edits))] == ["abc", "abc", None]


@pytest.mark.parametrize("leaving", [Patch(2, 0, "\n"), Patch(3, 0, "pasted\n"), Patch(3, 2, "")])
def test_a_line_is_known_as_it_stood_when_it_was_left(leaving: Patch) -> None:
    edits: Edits = [*typed("ab"), (0.3, [leaving]), *typed("z", begin_s=0.4)]
    assert [key.line for key in keystrokes_of(trace_of(edits, start="\nqq"))[:2]] == ["ab", None]


def test_a_line_keeps_what_was_pasted_and_deleted_in_it() -> None:
    edits: Edits = [*typed("a"), (0.1, [Patch(1, 0, "pasted")]), (0.2, [Patch(1, 1, "")])]
    assert keystrokes_of(trace_of(edits, start=";\n"))[0].line == "aasted;"


def test_long_pauses_are_capped() -> None:
    trace = trace_of([*typed("a"), *typed("b", begin_s=3600), *typed("c", begin_s=3605)])
    assert trace.keystroke_times_s == [0, PAUSE_CAP_S, PAUSE_CAP_S + 5]


def test_moments_begin_at_any_keystroke_and_end_with_the_edit_after_the_last() -> None:
    trace = trace_of(typed("abcde", gap_s=0.5))
    moments = list(trace.moments(first=1, count=2))
    assert [moment.at_s for moment in moments] == [0, 0.5, 1.0]
    assert [moment.keystroke and moment.keystroke.before for moment in moments] == ["ab", "abc", None]


def test_after_the_end_moments_go_on_at_the_beginning() -> None:
    moments = list(trace_of(typed("abc", gap_s=1), start="").moments(first=2, count=3))
    assert [moment.at_s for moment in moments] == [0, PAUSE_CAP_S, PAUSE_CAP_S, PAUSE_CAP_S + 1, PAUSE_CAP_S + 2]
    assert [moment.keystroke and moment.keystroke.before for moment in moments] == ["abc", None, "a", "ab", None]


def test_the_last_keystroke_of_a_trace_is_open_for_a_pause() -> None:
    assert moments_of(trace_of(typed("a")))[-1] == Moment(PAUSE_CAP_S, None)


def test_a_first_transaction_dated_1970_opens_the_file() -> None:
    history = history_of([(0, [Patch(0, 0, "opened ")]), *typed("ab", at=7, begin_s=1)])
    history["txns"][0]["time"] = "1970-01-01T00:00:00.000Z"
    trace = EditingTrace.decode(encode(history), name="t", seed=0)
    assert shown(keystrokes_of(trace)) == ["opened a|", "opened ab|"]
    assert trace.keystroke_times_s[0] == 0


def test_times_with_milliseconds_are_kept_and_seconds_are_spread() -> None:
    history = history_of(typed("abc", gap_s=0.25))
    kept = EditingTrace.decode(encode(history), name="t", seed=0)
    assert kept.keystroke_times_s == pytest.approx([0, 0.25, 0.5])
    for transaction in history["txns"]:
        transaction["time"] = "2024-05-01T12:00:07.000Z"
    one, same, other = (EditingTrace.decode(encode(history), name="t", seed=seed) for seed in (1, 1, 2))
    assert one.keystroke_times_s == same.keystroke_times_s != other.keystroke_times_s
    assert 0 < one.keystroke_times_s[1] < one.keystroke_times_s[2] < 1


def test_a_clock_that_was_set_back_is_no_time() -> None:
    history = history_of(typed("ab"))
    history["txns"][1]["time"] = "2020-01-01T00:00:00.123Z"
    assert EditingTrace.decode(encode(history), name="t", seed=0).keystroke_times_s == [0, 0]


def test_transactions_without_patches_are_nothing() -> None:
    history = history_of(typed("ab"))
    history["txns"].insert(1, {"time": "2024-05-01T12:00:00.050Z", "patches": []})
    assert len(moments_of(EditingTrace.decode(encode(history), name="t", seed=0))) == 3


def changed(**values: Any) -> dict[str, Any]:
    return history_of(typed("abc")) | values


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (
            changed(endContent="abd"),
            "t does not reproduce its endContent: expected 3 characters, got 3, different from character 2 on; "
            "the history is damaged or incomplete",
        ),
        (changed(endContent="ab"), "t does not reproduce its endContent: expected 2 characters, got 3, different from"),
        (changed(txns=[], endContent=""), "t has 0 edits but no keystroke; expected typing to replay"),
        (
            history_of([(0, [Patch(0, 0, "pasted")])]),
            "t has 1 edits but no keystroke; expected typing to replay",
        ),
        (
            changed(txns=[{"time": "2024-05-01T12:00:00Z", "patches": [[1, 0, "x"]]}]),
            "t has a patch outside its text: [1, 0, ...] in a text of 0 characters; the history is incomplete",
        ),
        (
            changed(txns=[{"time": "2024-05-01T12:00:00Z", "patches": [[0, 1, ""]]}]),
            "t has a patch outside its text: [0, 1, ...]",
        ),
        (
            changed(txns=[{"time": "2024-05-01T12:00:00Z", "patches": [[-1, 0, "x"]]}]),
            "t has a patch outside its text: [-1, 0, ...]",
        ),
        (
            changed(txns=[{"time": "2024-05-01T12:00:00Z", "patches": [[0, -1, "x"]]}]),
            "t has a patch outside its text: [0, -1, ...]",
        ),
        (
            changed(txns=[{"time": "2024-05-01T12:00:00Z", "patches": [["0", 0, "x"]]}]),
            "t is no editing history: Expected `int`, got `str` - at `$.txns[0].patches[0][0]`",
        ),
        (
            changed(txns=[{"time": "2024-05-01T12:00:00Z", "patches": [[0, 0]]}]),
            "t is no editing history: Expected `array` of length 3 - at `$.txns[0].patches[0]`",
        ),
        (
            changed(txns=[{"time": "yesterday", "patches": []}]),
            "t is no editing history: Invalid RFC3339 encoded datetime - at `$.txns[0].time`",
        ),
        (
            changed(txns=[{"time": "2024-05-01T12:00:00", "patches": []}]),
            "t is no editing history: Expected `datetime` with a timezone component - at `$.txns[0].time`",
        ),
        ({"txns": []}, "t is no editing history: Object missing required field `startContent`"),
    ],
)
def test_a_history_that_is_not_what_it_says_is_refused(history: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError) as raised:
        EditingTrace.decode(encode(history), name="t", seed=0)
    assert str(raised.value).startswith(message)


@st.composite
def edit_lists(draw: st.DrawFn) -> tuple[str, Edits]:
    """Draw a text and edits that fit it: typing, deleting, replacing, with pauses, one or several patches at once."""
    chars = st.text(alphabet="ab \n\té\N{GRINNING FACE}", max_size=3)
    start = text = draw(st.text(alphabet="ab\n", max_size=8))
    edits: Edits = []
    time_s = 0.0
    for _ in range(draw(st.integers(1, 25))):
        patches = []
        for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2]))):
            position = draw(st.integers(0, len(text)))
            num_deleted = draw(st.integers(0, min(2, len(text) - position)))
            patches.append(Patch(position, num_deleted, draw(chars)))
            text = apply_patches(text, patches[-1:])
        edits.append((time_s, patches))
        time_s += draw(st.sampled_from([0.0, 0.1, 1.9, 2.5, 100.0]))
    return start, edits


def naive(text: str, patches: list[Patch]) -> str:
    """Apply patches character by character: the obvious twin."""
    chars = list(text)
    for position, num_deleted, inserted in patches:
        for _ in range(num_deleted):
            del chars[position]
        for char in reversed(inserted):
            chars.insert(position, char)
    return "".join(chars)


@given(edit_lists())
def test_any_history_is_replayed_as_its_naive_twin(drawn: tuple[str, Edits]) -> None:
    start, edits = drawn
    trace = trace_of(edits, start=start)
    texts = [start]
    for _, patches in edits:
        texts.append(naive(texts[-1], patches))
    assert trace.end == texts[-1]
    num_keystrokes = len(trace.keystroke_times_s)
    if not num_keystrokes:
        return
    whole = moments_of(trace)
    replayed = [moment.keystroke for moment in whole if moment.keystroke is not None]
    assert len(replayed) == num_keystrokes
    possible = iter(texts[1:])
    assert all(any(text == key.before + key.after for text in possible) for key in replayed)
    for key in replayed:
        assert key.line is None or "\n" not in key.line
        assert key.line is None or any(key.line in text.split("\n") for text in texts)
    for first in range(num_keystrokes):
        part = list(trace.moments(first=first, count=num_keystrokes - first))
        assert [moment.keystroke for moment in part if moment.keystroke] == replayed[first:]
        assert math.isclose(part[0].at_s, 0, abs_tol=1e-9)
        assert all(a.at_s <= b.at_s for a, b in pairwise(part))


def test_a_start_far_into_a_long_history_is_exact() -> None:
    trace = trace_of(typed("ab" * 700))
    moment = next(trace.moments(first=1398, count=1))
    assert moment.keystroke is not None
    assert moment.keystroke.before == ("ab" * 700)[:1399]
