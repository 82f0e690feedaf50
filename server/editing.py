"""What both clients do alike in a session: number its events, and make of its updates what the editor shows.

Positions are indices into Python's strings here, and UTF-16 code units on the wire. Knows no channel.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from server import wire
from server.document import count_units
from server.errors import RequestFailedError
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.types import Completion, CompletionPart, CompletionRequest


class SuggestionUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """How the suggestion for one state of the document stands, or what went wrong with it."""

    state: int
    """The event that made the state, as the method of the session that sent it returned."""
    text: str = ""
    """All of the suggestion so far."""
    completion: Completion | None = None
    """The whole answer, once it is there."""
    error: RequestFailedError | None = None
    needs_text: bool = False
    """The server has lost the text: `open` the document again."""


class Editing:
    """A document as the editor has it, in step with the server's."""

    def __init__(self, common: CompletionRequest) -> None:
        self._common = common
        self.text = ""
        """The text as the editor has it."""
        self.state = 0
        """Number of the last event."""
        self._parts: list[CompletionPart] = []
        self._parts_state = 0

    def open(self, text: str, cursor: int, *, is_quiet: bool = False) -> pb.SessionEvent:
        """Return the event that opens the document; `cursor` is an index into `text`."""
        opened = wire.encode_open(self._common, text, _units(text, cursor), is_quiet=is_quiet)
        self.text = text
        return self._event(open=opened)

    def edit(
        self, start: int, end: int, new: str, *, cursor: int | None = None, is_quiet: bool = False
    ) -> pb.SessionEvent:
        """Return the event that replaces `text[start:end]`; the cursor is behind `new` then, unless it is given."""
        if not 0 <= start <= end <= len(self.text):
            raise ValueError(f"the edit is from {start} to {end}; expected a part of the text, 0 to {len(self.text)}")
        patch = wire.encode_patch(_units(self.text, start), _units(self.text, end), new)
        text = self.text[:start] + new + self.text[end:]
        index = start + len(new) if cursor is None else cursor
        edit = pb.EditDocument(patches=[patch], cursor=_units(text, index), quiet=is_quiet, length=count_units(text))
        self.text = text
        return self._event(edit=edit)

    def move(self, cursor: int, *, is_quiet: bool = False) -> pb.SessionEvent:
        """Return the event that moves the cursor."""
        return self._event(move=pb.MoveCursor(cursor=_units(self.text, cursor), quiet=is_quiet))

    def shown(self, state: int) -> pb.SessionEvent:
        """Return the event that says that a state's suggestion was shown."""
        return self._event(shown=pb.SuggestionShown(suggestion=state))

    def accepted(self, state: int, text: str = "") -> pb.SessionEvent:
        """Return the event that says how much of a suggestion was accepted; empty: all of it."""
        return self._event(accepted=pb.SuggestionAccepted(suggestion=state, length=count_units(text)))

    def rejected(self, state: int) -> pb.SessionEvent:
        """Return the event that says that a suggestion was rejected."""
        return self._event(rejected=pb.SuggestionRejected(suggestion=state))

    def close(self) -> pb.SessionEvent:
        """Return the event that closes the document."""
        return self._event(close=pb.CloseDocument())

    def read(self, update: pb.SessionUpdate, to_error: Callable[[pb.Problem], RequestFailedError]) -> SuggestionUpdate:
        """Take an update, and return how its suggestion stands."""
        if update.HasField("problem"):
            problem = update.problem
            return SuggestionUpdate(state=update.seq, error=to_error(problem), needs_text=problem.needs_text)
        if update.seq != self._parts_state:
            self._parts, self._parts_state = [], update.seq
        chunk = update.suggestion
        self._parts.append(wire.decode_part(chunk))
        completion = wire.decode_completion(self._parts, chunk) if wire.is_final(chunk) else None
        text = "".join(part.text for part in self._parts)
        return SuggestionUpdate(state=update.seq, text=text, completion=completion)

    def _event(self, **event: Any) -> pb.SessionEvent:
        self.state += 1
        return pb.SessionEvent(seq=self.state, **event)


def _units(text: str, index: int) -> int:
    if not 0 <= index <= len(text):
        raise ValueError(f"the cursor is at {index}; expected 0 to {len(text)}, an index into the text")
    return count_units(text[:index])
