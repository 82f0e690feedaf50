"""A bounded file of records: appended to, turned over when it is full, read back without what was torn.

Each record is one line of JSON. A file that is half of the bound is renamed to `NAME.1`, in place of the one before it,
so the newest records are always there and the disk never holds more than the bound. What cannot be written (a full
disk, a directory that is gone) is dropped and counted, and `problem` says why until a later write succeeds: records are
worth less than answers. `kill -9` can tear the last line only, which is left out when the file is read.

Knows no server and no session. `append` may be called from any thread and does not wait; `flush` waits for the disk.
"""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

MAX_WAITING = 4096
"""Records that wait to be written; one more is dropped."""

_log = logging.getLogger(__name__)


class RecordFile:
    """One file, and the one before it."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Nothing is written before the first `flush`; `max_bytes` bounds both files together."""
        self._path, self._most = path, max_bytes // 2
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self.num_dropped = 0
        """Records that were not written."""
        self.problem = ""
        """Why the last write failed; "" while all is well."""

    @property
    def has_waiting(self) -> bool:
        """Whether a flush would write anything."""
        return bool(self._waiting)

    def append(self, record: msgspec.Struct) -> None:
        """Take a record; it is written with the next `flush`."""
        line = msgspec.json.encode(record) + b"\n"
        with self._lock:
            if len(self._waiting) >= MAX_WAITING or len(line) > self._most:
                self.num_dropped += 1
            else:
                self._waiting.append(line)

    def flush(self) -> None:
        """Write what waits; never raises."""
        with self._writing:
            with self._lock:
                lines, self._waiting = self._waiting, []
            if not lines:
                return
            try:
                self._write(lines)
            except OSError as error:
                with self._lock:
                    self.num_dropped += len(lines)
                if not self.problem:
                    _log.warning("cannot write records to %s: %s; they are dropped", self._path, error)
                self.problem = f"records cannot be written to {self._path}: {error.strerror}"
            else:
                self.problem = ""

    def _write(self, lines: list[bytes]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        num_bytes = self._path.stat().st_size if self._path.exists() else 0
        batch: list[bytes] = []
        for line in lines:
            if num_bytes + len(line) > self._most and num_bytes:
                self._append(batch)
                self._path.replace(_older(self._path))
                batch, num_bytes = [], 0
            batch.append(line)
            num_bytes += len(line)
        self._append(batch)

    def _append(self, lines: list[bytes]) -> None:
        with self._path.open("ab") as file:
            if file.tell() and not _ends_a_line(self._path):
                file.write(b"\n")  # a line that was torn must not spoil the next one
            file.write(b"".join(lines))


def read_records(path: Path, kind: Any) -> Iterator[Any]:
    """Yield the records of a file, the oldest first, as `kind` has them; lines that are none are left out."""
    decoder = msgspec.json.Decoder(kind)
    for one in (_older(path), path):
        if not one.exists():
            continue
        with one.open("rb") as file:
            for line in file:
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError:
                    continue


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
