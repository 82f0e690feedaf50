"""What became of suggestions: counted by where they came from, and recorded for whoever learns from it.

Clients tell it of answers by their `request_id` (the `Feedback` RPC), sessions by the events of their streams. Records
hold no source text unless `server.feedback_has_text` says so, and name tenants and requests by a hash only. Records of
guesses (`server/predictor.py`) stand in the same file: `read_feedback` gives both kinds.

Invariant: a client can tell only of answers of its own tenant. Used from the event loop's thread only; the file is
written on another one.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from server.config import ServerConfig
from server.metrics import Metrics
from server.predictor import Guess
from server.record_file import RecordFile, read_records
from server.types import Source, SuggestionEvent

MAX_ANSWERS = 8192
"""Answers of which a client may still tell, the newest."""
FLUSH_S = 1.0
"""How long a record waits to be written, at most."""
FILE_NAME = "feedback.jsonl"
PREDICTOR_NAME = "predictor.json"


class Fate(msgspec.Struct, frozen=True, kw_only=True, tag="fate"):
    """What became of one suggestion."""

    at_s: float
    """When it was told, in seconds since 1970."""
    event: SuggestionEvent
    source: Source
    """Where the suggestion came from."""
    num_chars: int
    """Characters of the suggestion."""
    num_accepted: int = 0
    """Characters that were taken, of an accepted one."""
    tenant: str = ""
    """Hash of the tenant's name."""
    request: str = ""
    """Hash of the request's name."""
    text: str = ""
    """The suggestion, where records may have text."""


Record = Fate | Guess


class _Answer(NamedTuple):
    source: Source
    num_chars: int
    text: str


class Feedback:
    """Counters and records of one server."""

    def __init__(
        self, config: ServerConfig, metrics: Metrics, *, on_accept: Callable[[Source], None] = lambda source: None
    ) -> None:
        """Without `server.feedback_directory` nothing is recorded, only counted. `on_accept` hears of accepted ones."""
        self._metrics = metrics
        self._on_accept = on_accept
        self._has_text = config.feedback_has_text
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()
        self.file: RecordFile | None = None
        if config.feedback_directory:
            path = Path(config.feedback_directory).expanduser() / FILE_NAME
            self.file = RecordFile(path, max_bytes=config.feedback_bytes)
        self._flushing: asyncio.TimerHandle | None = None

    @property
    def health(self) -> str:
        """ "" while all is well, else what is wrong."""
        return "" if self.file is None else self.file.problem

    def remember(self, tenant: str, request_id: str, source: Source, text: str) -> None:
        """Take note of a whole answer, so that its client can tell what became of it."""
        answer = _Answer(source, len(text), text if self._has_text else "")
        self._answers[tenant, request_id] = answer
        self._answers.move_to_end((tenant, request_id))
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def tell(self, tenant: str, request_id: str, event: SuggestionEvent, *, num_accepted: int = 0) -> bool:
        """Count and record what became of an answer; False: there is none of this name, or it is too long ago.

        `num_accepted`: characters taken of an accepted one, from its start; 0: all.
        """
        answer = self._answers.get((tenant, request_id))
        if answer is None:
            return False
        if event == "accepted" and 0 < num_accepted < answer.num_chars:
            event = "partly_accepted"
        self.note(
            tenant,
            request_id,
            event,
            source=answer.source,
            num_chars=answer.num_chars,
            num_accepted=num_accepted,
            text=answer.text,
        )
        return True

    def note(
        self,
        tenant: str,
        request: str,
        event: SuggestionEvent,
        *,
        source: Source,
        num_chars: int,
        num_accepted: int = 0,
        text: str = "",
    ) -> None:
        """Count and record what became of a suggestion."""
        self._metrics.count_suggestion(event, source)
        if is_accept := event in ("accepted", "partly_accepted"):
            self._on_accept(source)
        self._append(
            Fate(
                at_s=round(time.time(), 3),
                event=event,
                source=source,
                num_chars=num_chars,
                num_accepted=(num_accepted or num_chars) if is_accept else 0,
                tenant=_name(tenant),
                request=_name(request),
                text=text if self._has_text else "",
            )
        )

    def note_guess(self, guess: Guess) -> None:
        """Record whether a guess came true."""
        self._append(guess)

    def close(self) -> None:
        """Write what waits; waits for the disk."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self.file is not None:
            self.file.flush()

    def _append(self, record: Record) -> None:
        if self.file is None:
            return
        self.file.append(record)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if self.file is not None:
            asyncio.get_running_loop().run_in_executor(None, self.file.flush)


def read_feedback(directory: Path) -> Iterator[Record]:
    """Yield the records in a feedback directory, the oldest first."""
    yield from read_records(directory / FILE_NAME, Record)


def _name(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if name else ""
