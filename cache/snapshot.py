"""A realm of the similarity tier on disk: written whole or not at all, and read back exactly or refused.

A file is a line with the format's version, a checksum of the rest, and a msgpack record. It is written aside, synced
and renamed. It holds vectors and texts, never an index, whose files would be pickles: building one takes seconds.
"""

import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np

from cache.errors import SnapshotError
from cache.key import tenant_name

_FORMAT = b"cloudcomplete similarity "
_VERSION = 1
_CHECKSUM_BYTES = 16


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A place that something was completed at."""

    digest: bytes
    """Of its key."""
    head: str
    """What stood left of the cursor, its end."""
    text: str
    """What followed."""
    created_s: float


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a realm remembers, the oldest place first."""

    embedder: str
    """Name of what made the vectors: those of another one cannot be compared with them."""
    tenant: str
    entries: list[Entry]
    vectors: np.ndarray
    """Float32 `[len(entries), dimension]`."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    embedder: str
    tenant: str
    entries: list[Entry]
    dimension: int
    vectors: bytes


def snapshot_path(directory: Path, *, tenant: str, realm: bytes) -> Path:
    """Return where a realm's snapshot belongs."""
    return directory / f"{tenant_name(tenant)}-{realm.hex()}.similar"


def snapshots_of(directory: Path, tenant: str | None) -> list[Path]:
    """Return the snapshots of a tenant, or of all, and what a killed process left beside them."""
    return sorted(directory.glob(f"{'*' if tenant is None else tenant_name(tenant)}-*.similar*"))


def write_snapshot(path: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot beside `path`, to be renamed to it; return where it is. Raises OSError."""
    count, dimension = snapshot.vectors.shape
    assert count == len(snapshot.entries), "every entry has one vector"
    body = msgspec.msgpack.encode(
        _Record(
            embedder=snapshot.embedder,
            tenant=tenant_name(snapshot.tenant),
            entries=snapshot.entries,
            dimension=dimension,
            vectors=np.ascontiguousarray(snapshot.vectors, "<f4").tobytes(),
        )
    )
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_FORMAT + b"%d\n" % _VERSION + _checksum(body) + body)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


def read_snapshot(path: Path, *, tenant: str, embedder: str, dimension: int) -> Snapshot:
    """Return a snapshot; raises FileNotFoundError, and SnapshotError for one that is damaged, older or another's."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SnapshotError(f"cannot read {path}: {error.strerror}; the tier starts empty") from None
    header, newline, rest = content.partition(b"\n")
    expected = _FORMAT + b"%d" % _VERSION
    if header != expected or not newline:
        raise _refusal(path, f"it begins with {header[:40]!r}; expected {expected!r}: another version wrote it")
    checksum, body = rest[:_CHECKSUM_BYTES], rest[_CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        raise _refusal(path, "its checksum is not that of its content: it was damaged or cut off")
    try:
        record = msgspec.msgpack.decode(body, type=_Record)
    except msgspec.DecodeError as error:
        raise _refusal(path, f"its record cannot be read: {error}") from None
    if (record.tenant, record.embedder, record.dimension) != (tenant_name(tenant), embedder, dimension):
        raise _refusal(
            path, f"it was made for {record.embedder!r} and {record.dimension} dimensions; expected {embedder!r}"
        )
    if len(record.vectors) != 4 * dimension * len(record.entries):
        raise _refusal(path, f"it has {len(record.entries)} entries and {len(record.vectors)} bytes of vectors")
    vectors = np.frombuffer(record.vectors, "<f4").reshape(len(record.entries), dimension)
    return Snapshot(embedder=embedder, tenant=tenant, entries=record.entries, vectors=vectors)


def _refusal(path: Path, reason: str) -> SnapshotError:
    return SnapshotError(f"{path} is not used: {reason}; it will be replaced, nothing has to be done")


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
