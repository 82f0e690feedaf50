"""An open document: edits against a plain string twin, offsets in UTF-16, lost events, what is no text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.document import Document, Patch, count_units
from server.errors import InvalidRequestError

TEXTS = st.text(st.sampled_from("ab\n é世🙂𝔸"), max_size=12)


def opened(text: str, cursor: int = 0, max_bytes: int = 10_000) -> Document:
    return Document(text, cursor=cursor, number=1, max_bytes=max_bytes)


def units(text: str, index: int) -> int:
    """Count UTF-16 code units one character at a time."""
    return sum(2 if ord(char) > 0xFFFF else 1 for char in text[:index])


@given(text=TEXTS, data=st.data())
def test_random_edits_leave_the_text_that_a_plain_string_has(text: str, data: st.DataObject) -> None:
    document, twin = opened(text), text
    for _ in range(data.draw(st.integers(1, 6))):
        patches = []
        for _ in range(data.draw(st.integers(0, 3))):
            start = data.draw(st.integers(0, len(twin)))
            end = data.draw(st.integers(start, len(twin)))
            new = data.draw(TEXTS)
            patches.append(Patch(units(twin, start), units(twin, end), new))
            twin = twin[:start] + new + twin[end:]
        cursor = data.draw(st.integers(0, len(twin)))
        document.edit(patches, cursor=units(twin, cursor), length=units(twin, len(twin)))
        assert (document.before, document.after) == (twin[:cursor], twin[cursor:])
        cursor = data.draw(st.integers(0, len(twin)))
        document.move(units(twin, cursor))
        assert (document.text, document.cursor) == (twin, cursor)
        assert count_units(twin) == units(twin, len(twin))


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch(0, 6, ""), "a patch's end is at 6, outside the text; expected 0 to 5, in UTF-16 code units; "),
        (Patch(9, 9, ""), "a patch's start is at 9, outside the text; expected 0 to 5, in UTF-16 code units; "),
        (Patch(2, 3, ""), "a patch's start is at 2, inside a character; expected the edge of one, in UTF-16 "),
        (Patch(4, 3, ""), "a patch's end is 3; expected at least its start, which is 4; "),
        (Patch(0, 0, "a\0"), "the document has a NUL character at 1; expected text; binary files have no completions"),
        (Patch(0, 0, "é" * 6), "the document has 19 bytes; expected at most 16; close it, or raise server.max_text_b"),
    ],
)
def test_an_edit_that_does_not_fit_says_why_and_changes_nothing(patch: Patch, message: str) -> None:
    document = opened("a🙂bc", 1, max_bytes=16)
    with pytest.raises(InvalidRequestError) as raised:
        document.edit([Patch(0, 0, "🙂"), Patch(0, 2, ""), patch], cursor=0)
    assert str(raised.value).startswith(message)
    assert (document.before, document.after) == ("a", "🙂bc")


def test_a_length_that_the_client_does_not_have_is_noticed() -> None:
    document = opened("a🙂")
    with pytest.raises(InvalidRequestError) as raised:
        document.edit([Patch(0, 1, "")], cursor=0, length=3)
    assert str(raised.value) == (
        "the text has 2 UTF-16 code units after the edit; expected 3, as the client has; "
        "open the document again with its text"
    )
    assert document.text == "a🙂"


@pytest.mark.parametrize("number", [0, 1, 3])
def test_events_that_are_lost_or_repeated_are_noticed(number: int) -> None:
    document = opened("a")
    with pytest.raises(InvalidRequestError) as raised:
        document.count(number)
    assert str(raised.value) == (
        f"event {number} came after event 1; expected event 2: some were lost, repeated or reordered; "
        "open the document again with its text"
    )
    document.count(2)
    document.count(3)


def test_a_cursor_outside_the_text_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the cursor is at 2, outside the text; expected 0 to 1"):
        opened("a", 2)
    with pytest.raises(InvalidRequestError, match="the cursor is at 2"):
        opened("a").move(2)


def test_an_edit_of_too_many_patches_is_refused_and_changes_nothing() -> None:
    document = Document("ab", cursor=0, number=0, max_bytes=100)
    with pytest.raises(
        InvalidRequestError, match=r"an edit has 1,001 patches; expected at most 1,000; open the document"
    ):
        document.edit([Patch(0, 0, "")] * 1001, cursor=0)
    assert document.text == "ab"
