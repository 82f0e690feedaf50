"""A bounded log of what clients asked, so that caches can be warmed with yesterday's places.

It holds source code, so it is off unless `server.request_log` names a file. Knows no answers.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from server.record_file import RecordFile, read_records
from server.types import CompletionRequest

FLUSH_S = 2.0


class LoggedRequest(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """One request as it came in."""

    tenant: str
    request: CompletionRequest


class RequestLog:
    """Appends requests to a file and the one before it; what cannot be written is dropped and counted."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.file = RecordFile(path, max_bytes=max_bytes)
        self._closing = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
        self._thread = threading.Thread(target=self._flush, name="request-log", daemon=True)
        self._thread.start()

    def append(self, tenant: str, request: CompletionRequest) -> None:
        """Take a request; never waits for the disk."""
        self.file.append(LoggedRequest(tenant=tenant, request=request))

    def close(self) -> None:
        """Write what waits; harmless when repeated."""
        self._closing.set()
        self._thread.join()

    def _flush(self) -> None:
        while not self._closing.wait(FLUSH_S):
            self.file.flush()
        self.file.flush()


def read_request_log(path: Path) -> Iterator[LoggedRequest]:
    """Yield what a log holds, the oldest first."""
    yield from read_records(path, LoggedRequest)
