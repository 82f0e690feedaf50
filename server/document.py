"""An open document: its text as the client says it is, edit by edit. Knows no session and no transport.

Offsets count UTF-16 code units from the start of the text, as most editors do (VS Code, the JVM's, .NET's) and as the
Language Server Protocol does by default; Python's own indices count characters. The two differ only behind characters
beyond U+FFFF, so a text without any is spliced as it is.

Events are numbered without gaps. The text is never guessed: after an event that is lost, repeated or does not fit, the
document is stale, and stays so until it is opened again with its text.

Invariant: `cursor` is an index into `text`, and the text has at most `max_bytes` UTF-8 bytes and no NUL.
"""

import sys
from collections.abc import Iterable
from typing import NamedTuple

from server.errors import InvalidRequestError

MAX_PATCHES = 1000
"""Patches of one edit: more would hold up everybody else, and sending the text again is cheaper."""
_LOW_HALF = 0xDC
"""High byte, but for its last two bits, of the second half of a character of two code units."""


class Patch(NamedTuple):
    """Replace the text from `start` to `end`, both in UTF-16 code units."""

    start: int
    end: int
    text: str


class Document:
    """The text of one open file, and the cursor in it."""

    def __init__(self, text: str, *, cursor: int, number: int, max_bytes: int) -> None:
        """`cursor` is in UTF-16 code units, `number` is the event's; raises InvalidRequestError."""
        self._max_bytes = max_bytes
        self._check(text)
        self.text = text
        self._is_wide = _is_wide(text)
        self.cursor = self._index(text, cursor, "the cursor")
        self._number = number

    @property
    def num_bytes(self) -> int:
        """Memory that its text takes."""
        return sys.getsizeof(self.text)

    @property
    def before(self) -> str:
        """Text left of the cursor."""
        return self.text[: self.cursor]

    @property
    def after(self) -> str:
        """Text right of the cursor."""
        return self.text[self.cursor :]

    def count(self, number: int) -> None:
        """Take the number of the next event; raises InvalidRequestError when it is not the next one."""
        if number != self._number + 1:
            raise InvalidRequestError(
                f"event {number} came after event {self._number}; expected event {self._number + 1}: some were lost, "
                "repeated or reordered; open the document again with its text"
            )
        self._number = number

    def edit(self, patches: Iterable[Patch], *, cursor: int, length: int | None = None) -> None:
        """Apply patches, each to what the one before left, and set the cursor.

        `length`: what the text has to have then, in UTF-16 code units. Raises InvalidRequestError and changes nothing.
        """
        patches = list(patches)
        if len(patches) > MAX_PATCHES:
            raise InvalidRequestError(
                f"an edit has {len(patches):,} patches; expected at most {MAX_PATCHES:,}; open the document again with "
                "its text"
            )
        was_wide = self._is_wide
        self._is_wide = was_wide or any(_is_wide(patch.text) for patch in patches)
        try:
            text = self._patched(patches)
            self._check(text)
            if length is not None and length != self._num_units(text):
                raise InvalidRequestError(
                    f"the text has {self._num_units(text)} UTF-16 code units after the edit; expected {length}, as the "
                    "client has; open the document again with its text"
                )
            index = self._index(text, cursor, "the cursor")
        except InvalidRequestError:
            self._is_wide = was_wide
            raise
        self.text, self.cursor = text, index

    def move(self, cursor: int) -> None:
        """Set the cursor, in UTF-16 code units; raises InvalidRequestError."""
        self.cursor = self._index(self.text, cursor, "the cursor")

    def _patched(self, patches: list[Patch]) -> str:
        """Return the text with patches applied one after the other; a wide one is encoded only once for all of them."""
        size = 2 if self._is_wide else 1
        text: str | bytearray = bytearray(self.text.encode("utf-16-le")) if self._is_wide else self.text
        for patch in patches:
            for offset, what in ((patch.start, "a patch's start"), (patch.end, "a patch's end")):
                self._check_offset(text, offset, what)
            if patch.end < patch.start:
                raise InvalidRequestError(
                    f"a patch's end is {patch.end}; expected at least its start, which is {patch.start}; "
                    "open the document again with its text"
                )
            start, end = size * patch.start, size * patch.end
            if isinstance(text, str):
                text = text[:start] + patch.text + text[end:]
            else:
                text[start:end] = patch.text.encode("utf-16-le")
        return text if isinstance(text, str) else text.decode("utf-16-le")

    def _check_offset(self, text: str | bytearray, offset: int, what: str) -> None:
        """Refuse an offset outside a text, or inside a character; `text` is UTF-16 if it is bytes."""
        num_units = len(text) if isinstance(text, str) else len(text) // 2
        if offset > num_units:
            raise InvalidRequestError(
                f"{what} is at {offset}, outside the text; expected 0 to {num_units}, in UTF-16 code units; "
                "open the document again with its text"
            )
        is_low_half = not isinstance(text, str) and offset < num_units and text[2 * offset + 1] & 0xFC == _LOW_HALF
        if is_low_half:
            raise InvalidRequestError(
                f"{what} is at {offset}, inside a character; expected the edge of one, in UTF-16 code units; "
                "open the document again with its text"
            )

    def _check(self, text: str) -> None:
        num_bytes = len(text) if text.isascii() else len(text.encode())
        if num_bytes > self._max_bytes:
            raise InvalidRequestError(
                f"the document has {num_bytes:,} bytes; expected at most {self._max_bytes:,}; "
                "close it, or raise server.max_text_bytes"
            )
        if "\0" in text:
            raise InvalidRequestError(
                f"the document has a NUL character at {text.index(chr(0))}; expected text; binary files have no "
                "completions, so close it"
            )

    def _num_units(self, text: str) -> int:
        return len(text.encode("utf-16-le")) // 2 if self._is_wide else len(text)

    def _index(self, text: str, offset: int, what: str) -> int:
        """Return the index of an offset into a text of this document."""
        if not self._is_wide:
            self._check_offset(text, offset, what)
            return offset
        units = bytearray(text.encode("utf-16-le"))
        self._check_offset(units, offset, what)
        return len(units[: 2 * offset].decode("utf-16-le"))


def count_units(text: str) -> int:
    """Return the length of a text in UTF-16 code units."""
    return len(text.encode("utf-16-le")) // 2 if _is_wide(text) else len(text)


def _is_wide(text: str) -> bool:
    """Tell whether a text has characters that take two UTF-16 code units."""
    return not text.isascii() and len(text.encode("utf-16-le")) != 2 * len(text)
