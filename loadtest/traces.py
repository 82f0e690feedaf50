"""Traces: recordings of people typing, as moments that a replay can live through again.

A trace is read from a file, refused when it is not what it says (`TraceError`), and then only read. It knows when what
was typed, what stood around the cursor then, and what came of it; it knows no server.

    trace = read_trace(Path("component.json.gz"), seed=0)
    for moment in trace.moments(first=120, count=50):
        ...  # `moment.keystroke` is asked for, or None: the text changed, and nothing is asked
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from loadtest.errors import TraceError

PAUSE_CAP_S = 10.0
"""Longer pauses are replayed as this one."""
REST_S = 2.0
"""A gap from which on the typist has paused: the text as it stands then is what was meant."""
NUM_NEXT_CHARS = 5
_GZIP_MAGIC = b"\x1f\x8b"
_FORMATS = (
    "an editing history (startContent, endContent, txns) or completion sessions (JSON Lines with session, "
    "TimeGenerated, StateName, CurrentPrompt)"
)


class Keystroke(msgspec.Struct, frozen=True, kw_only=True):
    """One press of a key that types something, and what later came to stand at the cursor."""

    before: str
    """Text left of the cursor after the key."""
    after: str
    """Text right of it."""
    document: str
    """Which of the trace's open files it is in."""
    next_chars: str
    """The next five characters typed at the cursor; fewer where the typist went elsewhere; empty: none."""
    line: str | None
    """The cursor's line as it stood at the next pause, or when it was left. None: nothing more came into it."""


class Moment(msgspec.Struct, frozen=True):
    """A change of the text. What was asked before it is of no use after it."""

    at_s: float
    """Seconds since the first moment, with long pauses capped."""
    keystroke: Keystroke | None
    """What asks for a completion; None for a change that asks nothing, and for the end."""


class Trace(Protocol):
    """One or more files being written."""

    @property
    def keystroke_times_s(self) -> Sequence[float]:
        """When each keystroke is, with long pauses capped; never falling."""

    def moments(self, *, first: int, count: int) -> Iterator[Moment]:
        """Yield what happens from keystroke `first` on until `count` keystrokes have been, and the change after them.

        After the end of the trace it goes on at its beginning. The same arguments give the same moments.
        """


def read_trace(path: Path, *, seed: int) -> Trace:
    """Read a trace of either format; `seed` places what the file does not say. Raises TraceError."""
    from loadtest.editing_trace import EditingTrace
    from loadtest.session_trace import SessionTrace

    data = _read(path)
    if not data.strip():
        raise TraceError(f"{path} is empty; expected {_FORMATS}")
    keys = _keys(data)
    if "txns" in keys:
        return EditingTrace.decode(data, name=str(path), seed=seed)
    if "CurrentPrompt" in keys:
        return SessionTrace.decode(data, name=str(path))
    got = f"JSON with {', '.join(sorted(keys)[:8])}" if keys else "something else"
    raise TraceError(f"{path} is no known trace: expected {_FORMATS}, got {got}")


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}; expected {_FORMATS}") from None
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path} is damaged or cut short: {error}; expected whole gzip data: copy it again") from None


def _keys(data: bytes) -> set[str]:
    """Return the names in the file's one JSON object, or in the first line's."""
    first_line = data.lstrip().partition(b"\n")[0]
    for text in (first_line, data):
        try:
            return set(msgspec.json.decode(text, type=dict[str, msgspec.Raw]))
        except msgspec.DecodeError:
            continue
    return set()
