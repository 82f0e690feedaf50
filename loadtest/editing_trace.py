"""Editing histories: one file being written, as a list of timed patches (the form of josephg/editing-traces).

    {"startContent": "", "endContent": "…", "txns": [{"time": "2023-07-20T21:19:31.555Z", "patches": [[0, 0, "#"]]}]}

A patch is `[position, deleted, inserted]`, positions count Unicode code points, patches of a transaction apply in
order. A first transaction dated 1970 is the opening of the file. A history whose patches do not lead from its start to
its end is refused.

**What is a keystroke**: one patch that inserts what one press of a key types. That is a single character, also over a
selection; a line break with the indentation that an editor adds, also between brackets, where it adds another line
break after the cursor; two brackets or quotation marks where an editor closes the one typed; two to eight spaces, the
tab key's. Everything else changes the text and asks nothing: longer insertions (pastes, accepted completions), pure
deletions, several patches at once (several cursors, formatting), and undo, which is a patch that takes back exactly the
one before it.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple, Self

import msgspec

from loadtest import typing_rhythm
from loadtest.errors import TraceError
from loadtest.traces import NUM_NEXT_CHARS, PAUSE_CAP_S, REST_S, Keystroke, Moment

_OPENING_YEAR = 1970
_NUM_EDITS_APART = 512
_PAIRS = frozenset({"()", "[]", "{}", "<>", "''", '""', "``"})
_KEY = re.compile(r"(?P<typed>\r?\n[ \t]*)(?:\r?\n[ \t]*)?| {2,8}")


class Patch(NamedTuple):
    """One replacement of text."""

    position: int
    num_deleted: int
    inserted: str


class _Transaction(msgspec.Struct):
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    patches: list[Patch]


class _History(msgspec.Struct, rename="camel"):
    start_content: str
    end_content: str
    txns: list[_Transaction]


class _Asking(msgspec.Struct):
    """A keystroke, less the text around it."""

    edit: int
    cursor: int
    next_chars: str = ""
    line: str | None = None


def num_typed_chars(inserted: str) -> int | None:
    """Return how many characters of an insertion a press of a key puts left of the cursor; None: no key types it."""
    if len(inserted) == 1 or inserted in _PAIRS:
        return 1
    if (key := _KEY.fullmatch(inserted)) is None:
        return None
    return key.end("typed") if key["typed"] else len(inserted)


def apply_patches(text: str, patches: Sequence[Patch]) -> str:
    """Return the text after a transaction; raises IndexError when a patch is outside of it."""
    for position, num_deleted, inserted in patches:
        if position < 0 or num_deleted < 0 or position + num_deleted > len(text):
            raise IndexError(f"[{position}, {num_deleted}, ...] in a text of {len(text)} characters")
        text = text[:position] + inserted + text[position + num_deleted :]
    return text


class EditingTrace:
    """A `Trace` of one file. Texts are kept at every 512th edit, so that a replay may start anywhere at once."""

    def __init__(self, start: str, edits: Sequence[Sequence[Patch]], times_s: Sequence[float]) -> None:
        """Go once through the history; `times_s` must not fall. Raises IndexError for a patch outside the text."""
        assert len(edits) == len(times_s), "an edit has a time"
        self._edits = edits
        self._times_s = _cap_pauses(times_s)
        self._texts: list[str] = []
        self._askings: list[_Asking] = []
        self.end = self._walk(start, times_s)
        for asking in self._askings:
            asking.next_chars = self._next_chars(asking)
        self.keystroke_times_s = [self._times_s[asking.edit] for asking in self._askings]

    @classmethod
    def decode(cls, data: bytes, *, name: str, seed: int) -> Self:
        """Read a history; raises TraceError."""
        try:
            history = msgspec.json.decode(data, type=_History)
        except (msgspec.DecodeError, RecursionError) as error:
            raise TraceError(f"{name} is no editing history: {error}") from None
        transactions = [transaction for transaction in history.txns if transaction.patches]
        start = history.start_content
        try:
            if transactions and transactions[0].time.year == _OPENING_YEAR:
                start = apply_patches(start, transactions.pop(0).patches)
            times_s = _place([transaction.time for transaction in transactions], seed)
            trace = cls(start, [transaction.patches for transaction in transactions], times_s)
        except IndexError as error:
            raise TraceError(f"{name} has a patch outside its text: {error}; the history is incomplete") from None
        if trace.end != history.end_content:
            at = next(
                (i for i, (a, b) in enumerate(zip(trace.end, history.end_content, strict=False)) if a != b),
                min(len(trace.end), len(history.end_content)),
            )
            raise TraceError(
                f"{name} does not reproduce its endContent: expected {len(history.end_content):,} characters, got "
                f"{len(trace.end):,}, different from character {at:,} on; the history is damaged or incomplete"
            )
        if not trace.keystroke_times_s:
            raise TraceError(f"{name} has {len(transactions):,} edits but no keystroke; expected typing to replay")
        return trace

    def moments(self, *, first: int, count: int) -> Iterator[Moment]:
        """Yield what happens from keystroke `first` on until `count` keystrokes have been, and the edit after them."""
        num_left, offset_s = count, -self.keystroke_times_s[first]
        edit, ordinal = self._askings[first].edit, first
        text = self._text_before(edit)
        while True:
            while edit < len(self._edits):
                at_s = self._times_s[edit] + offset_s
                text = apply_patches(text, self._edits[edit])
                asking = self._askings[ordinal] if ordinal < len(self._askings) else None
                if num_left == 0 or asking is None or asking.edit != edit:
                    yield Moment(at_s, None)
                    if num_left == 0:
                        return
                else:
                    yield Moment(
                        at_s,
                        Keystroke(
                            before=text[: asking.cursor],
                            after=text[asking.cursor :],
                            document="0",
                            next_chars=asking.next_chars,
                            line=asking.line,
                        ),
                    )
                    num_left, ordinal = num_left - 1, ordinal + 1
                edit += 1
            offset_s += self._times_s[-1] + PAUSE_CAP_S
            yield Moment(offset_s, None)
            if num_left == 0:
                return
            edit, ordinal, text = 0, 0, self._texts[0]

    def _walk(self, text: str, times_s: Sequence[float]) -> str:
        """Find the keystrokes, keep some texts, note each line as it stood in the end; return the last text."""
        begin = end = 0  # the line that is being typed in
        pending: list[tuple[_Asking, str]] = []  # keystrokes in it, each with the line after it
        undone_by: Patch | None = None
        for index, patches in enumerate(self._edits):
            if index % _NUM_EDITS_APART == 0:
                self._texts.append(text)
            changed = apply_patches(text, patches)
            patch = patches[0] if len(patches) == 1 else None
            deleted = text[patch.position : patch.position + patch.num_deleted] if patch else ""
            is_rest = index > 0 and times_s[index] - times_s[index - 1] >= REST_S
            if pending and (is_rest or patch is None or not _is_within(patch, deleted, begin, end)):
                _settle(pending, text[begin:end])
            if patch is not None:
                end += len(patch.inserted) - patch.num_deleted
                num_typed = num_typed_chars(patch.inserted) if patch != undone_by else None
                if num_typed is not None:
                    cursor = patch.position + num_typed
                    begin, end = _line_around(changed, cursor)
                    asking = _Asking(edit=index, cursor=cursor)
                    self._askings.append(asking)
                    pending.append((asking, changed[begin:end]))
            undone_by = Patch(patch.position, len(patch.inserted), deleted) if patch is not None else None
            text = changed
        _settle(pending, text[begin:end])
        return text

    def _next_chars(self, asking: _Asking) -> str:
        """Follow the typing that goes on at a keystroke's cursor until five characters stand left of the cursor."""
        typed = ""
        for edit in range(asking.edit + 1, len(self._edits)):
            if len(self._edits[edit]) != 1:
                break
            position, num_deleted, inserted = self._edits[edit][0]
            start = position - asking.cursor
            if start < 0 or start + num_deleted > len(typed):
                break
            typed = typed[:start] + inserted + typed[start + num_deleted :]
            cursor = start + (num_typed_chars(inserted) or len(inserted))
            if cursor >= NUM_NEXT_CHARS:
                break
        return typed[:NUM_NEXT_CHARS]

    def _text_before(self, edit: int) -> str:
        kept = edit // _NUM_EDITS_APART
        text = self._texts[kept]
        for patches in self._edits[kept * _NUM_EDITS_APART : edit]:
            text = apply_patches(text, patches)
        return text


def _place(times: Sequence[datetime], seed: int) -> list[float]:
    """Return seconds that do not fall, spread inside each second where the recording does not know more."""
    times_s = [time.timestamp() for time in times]
    for index in range(1, len(times_s)):  # a clock that was set back: no time passed
        times_s[index] = max(times_s[index], times_s[index - 1])
    return typing_rhythm.spread(times_s, seed=seed) if typing_rhythm.has_whole_seconds(times_s) else times_s


def _cap_pauses(times_s: Sequence[float]) -> list[float]:
    """Return the times from 0 on, with long pauses shortened."""
    capped_s = [0.0] * len(times_s)
    for index in range(1, len(times_s)):
        capped_s[index] = capped_s[index - 1] + min(times_s[index] - times_s[index - 1], PAUSE_CAP_S)
    return capped_s


def _is_within(patch: Patch, deleted: str, begin: int, end: int) -> bool:
    """Tell whether a patch changes one line and leaves it one line."""
    is_inside = begin <= patch.position and patch.position + patch.num_deleted <= end
    return is_inside and "\n" not in patch.inserted and "\n" not in deleted


def _line_around(text: str, cursor: int) -> tuple[int, int]:
    end = text.find("\n", cursor)
    return text.rfind("\n", 0, cursor) + 1, len(text) if end < 0 else end


def _settle(pending: list[tuple[_Asking, str]], line: str) -> None:
    """Note the line as it stands now with every keystroke after which it has changed."""
    for asking, line_then in pending:
        asking.line = line if line != line_then else None
    pending.clear()
