"""A shared store in one file, for the processes of one machine: SQLite with a write-ahead log.

What was put is there after the process is killed, at whatever moment: a transaction is in the log whole or not at all.
(`synchronous=NORMAL`: when the machine itself fails, the last transactions may be missing, but nothing is damaged.) A
file that is damaged, cut off, no database or of another version is set aside under a name with the time, and a new one
begins. Nothing is deleted, nothing mixed. Processes that find it at the same time agree by a lock file.

The size is bounded by bytes of records, counted by triggers so that it is right for any number of processes; the least
recently used go first. The file itself may be larger by what SQLite needs, and does not shrink: freed pages are used
again.
"""

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cache.errors import CacheConfigError, SharedStoreError
from cache.key import tenant_name
from cache.record import RECORD_VERSION
from cache.store import Stored, StoreSize

logger = logging.getLogger(__name__)

FILE_NAME = "completions.sqlite3"
SCHEMA_VERSION = 100 + RECORD_VERSION
_APPLICATION_ID = 0x636C6363
_SCHEMA = f"""
CREATE TABLE entries (
    digest BLOB PRIMARY KEY,
    tenant TEXT NOT NULL,
    created_s REAL NOT NULL,
    used_s REAL NOT NULL,
    record BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX entries_by_use ON entries (used_s);
CREATE INDEX entries_by_creation ON entries (created_s);
CREATE TABLE total (num_entries INTEGER NOT NULL, num_bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
    UPDATE total SET num_entries = num_entries + 1, num_bytes = num_bytes + length(new.record);
END;
CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
    UPDATE total SET num_entries = num_entries - 1, num_bytes = num_bytes - length(old.record);
END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_UNREADABLE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_MOST_TOUCHED = 1024
_PURGED_AT_ONCE = 64


class SqliteStore:
    """Records in a file; several processes may share it."""

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        ttl_s: float,
        busy_s: float = 1.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open or make the file in `directory`; raises CacheConfigError when that can never work."""
        self._path = directory / FILE_NAME
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._busy_s = busy_s
        self._now = now
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._touched: set[bytes] = set()
        self.num_evicted = 0
        self.num_set_aside = 0
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CacheConfigError(
                f"cannot make the cache's directory {directory}: {error.strerror}; "
                'set cache.directory to a writable one, or cache.shared = "none"'
            ) from None

    @property
    def place(self) -> str:
        return str(self._path)

    def get(self, tenant: str, digest: bytes) -> bytes | None:
        """Return a record that is not too old."""
        with self._working() as connection:
            row = connection.execute(
                "SELECT record FROM entries WHERE digest = ? AND tenant = ? AND created_s >= ?",
                (digest, tenant_name(tenant), self._now() - self._ttl_s),
            ).fetchone()
            if row is None:
                return None
            if len(self._touched) < _MOST_TOUCHED:
                self._touched.add(digest)
            record: bytes = row[0]
            return record

    def put(self, batch: Sequence[Stored]) -> None:
        """Keep records, and make room for them; when it returns, they are in the log."""
        with self._working() as connection:
            now = self._now()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "UPDATE entries SET used_s = ? WHERE digest = ?", [(now, digest) for digest in self._touched]
            )
            for stored in batch:
                connection.execute("DELETE FROM entries WHERE digest = ?", (stored.digest,))
                connection.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
                    (stored.digest, tenant_name(stored.tenant), stored.created_s, now, stored.record),
                )
            num_evicted = connection.execute("DELETE FROM entries WHERE created_s < ?", (now - self._ttl_s,)).rowcount
            while _total(connection)[1] > self._max_bytes:
                num_evicted += connection.execute(
                    "DELETE FROM entries WHERE digest IN "
                    "(SELECT digest FROM entries ORDER BY used_s, created_s LIMIT ?)",
                    (min(_PURGED_AT_ONCE, -(-_total(connection)[0] // 16)),),
                ).rowcount
            connection.execute("COMMIT")
            self.num_evicted += num_evicted
            self._touched.clear()

    def delete(self, tenant: str, digest: bytes) -> None:
        """Forget a record, if it is there."""
        with self._working() as connection:
            connection.execute("DELETE FROM entries WHERE digest = ? AND tenant = ?", (digest, tenant_name(tenant)))

    def clear(self, tenant: str | None = None) -> int:
        """Forget a tenant's records, or all; return how many."""
        with self._working() as connection:
            if tenant is None:
                return connection.execute("DELETE FROM entries").rowcount
            return connection.execute("DELETE FROM entries WHERE tenant = ?", (tenant_name(tenant),)).rowcount

    def measure(self) -> StoreSize:
        """Count what is there."""
        with self._working() as connection:
            num_entries, num_bytes = _total(connection)
            return StoreSize(num_entries=num_entries, num_bytes=num_bytes)

    def close(self) -> None:
        """Let go of the file; another call opens it again."""
        with self._lock:
            self._disconnect()

    def check_integrity(self) -> None:
        """Assert that SQLite finds nothing wrong, and that the counted size is right and within its bound."""
        with self._working() as connection:
            verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
            assert verdict == "ok", verdict
            actual = connection.execute("SELECT count(*), coalesce(sum(length(record)), 0) FROM entries").fetchone()
            assert actual == _total(connection), f"{_total(connection)} is counted, there is {actual}"
            assert actual[1] <= self._max_bytes, f"{actual[1]} bytes are held, {self._max_bytes} allowed"

    @contextmanager
    def _working(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, opened if need be; after an error it is closed, so that the next call starts anew."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                yield self._connection
            except (sqlite3.Error, OSError) as error:
                self._disconnect()
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNREADABLE:
                    self._set_aside_unless_whole()
                raise SharedStoreError(f"{self._path}: {error}; the cache goes on without it and tries again") from None

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's own mode would let others read
        with self._alone():
            connection = self._open()
            try:
                if reason := _refusal(connection):
                    connection.close()
                    self._set_aside(reason)
                    os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
                    connection = self._open()
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                    connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
            except BaseException:
                connection.close()
                raise
            return connection

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()  # rolls back what was begun
            self._connection = None

    def _set_aside_unless_whole(self) -> None:
        """Open the file anew, which sets it aside if it is damaged; another process may have done so already."""
        try:
            self._connection = self._connect()
        except (sqlite3.Error, OSError) as error:
            logger.warning("cannot open %s anew: %s", self._path, error)

    def _set_aside(self, reason: str) -> None:
        time_name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = self._path.with_name(f"{self._path.stem}.aside-{time_name}{self._path.suffix}")
        for suffix in ("-wal", "-shm", ""):
            path = self._path.with_name(self._path.name + suffix)
            if path.exists():
                path.rename(aside.with_name(aside.name + suffix))
        self.num_set_aside += 1
        logger.warning("%s cannot be used: %s; it is kept as %s, and a new one begins", self._path, reason, aside.name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from opening the file or setting it aside."""
        descriptor = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _refusal(connection: sqlite3.Connection) -> str:
    """Return why a database cannot be used; "" if it can, or is new."""
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        has_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
        if not has_tables and version == 0:
            return ""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        if (application, version) != (_APPLICATION_ID, SCHEMA_VERSION):
            return f"its version is {application:x}/{version}, expected {_APPLICATION_ID:x}/{SCHEMA_VERSION}"
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        return "" if verdict == "ok" else f"it is damaged: {verdict}"
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _UNREADABLE:
            return str(error)
        raise


def _total(connection: sqlite3.Connection) -> tuple[int, int]:
    num_entries, num_bytes = connection.execute("SELECT num_entries, num_bytes FROM total").fetchone()
    return num_entries, num_bytes
