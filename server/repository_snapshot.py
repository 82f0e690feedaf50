"""A project's source text on disk, as `cloudcomplete index` writes it and a server reads it: whole, or refused.

A file is a line with the format's version and a checksum of the rest, then a msgpack record. It is written aside,
synced and renamed. It holds texts, never the index made of them: making one takes seconds and needs no format. A file's
name tells tenant and directory by hashes only.

Knows no ranking and no server.
"""

import hashlib
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from server.errors import RepositoryError
from server.source_tree import FoundFile, find_files, read_source

SUFFIX = ".repository"
MAX_BYTES = 32 * 1024 * 1024
"""Most UTF-8 bytes of one project; files beyond it are left out, the last ones by path."""
_FORMAT = b"cloudcomplete repository "
_VERSION = 1
_DIGEST_BYTES = 16
_RACY_NS = 2_000_000_000
"""A file changed so shortly before it was read may change again without another time stamp: it is read again."""


class SourceFile(msgspec.Struct, frozen=True, array_like=True):
    """One file as it was read."""

    path: str
    """Within the project, with forward slashes."""
    digest: bytes
    """Of its text."""
    num_bytes: int
    mtime_ns: int
    text: str


class RepositorySnapshot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A project at one moment, its files sorted by path."""

    root: str
    """Its directory, absolute."""
    tenant: str
    taken_ns: int
    """When, since the epoch."""
    files: tuple[SourceFile, ...] = ()


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a new snapshot has that the one before had not."""

    num_new: int
    num_changed: int
    num_gone: int
    num_same: int
    num_read: int
    """Files that had to be read: the others have the size and the time of last change that they had."""
    left_out: dict[str, int]
    """Why files are not in it -> how many."""


def take_snapshot(
    root: Path, *, tenant: str, before: RepositorySnapshot | None = None
) -> tuple[RepositorySnapshot, Changes]:
    """Read a project's source, only what changed since `before`; raises RepositoryError."""
    known = {} if before is None else {file.path: file for file in before.files}
    taken_ns, left_out = time.time_ns(), Counter[str]()
    files: list[SourceFile] = []
    num_new = num_changed = num_read = num_bytes = 0
    try:
        for found in find_files(root, left_out):
            old = known.get(found.path)
            file = old
            if old is None or before is None or not _is_unchanged(found, old, before.taken_ns):
                num_read += 1
                file = _read(found, old, left_out)
            if file is None:
                continue
            num_bytes += file.num_bytes
            if num_bytes > MAX_BYTES:
                num_bytes -= file.num_bytes
                left_out[f"beyond {MAX_BYTES:,} bytes together"] += 1
                continue
            files.append(file)
            num_new += old is None
            num_changed += old is not None and file.digest != old.digest
    except OSError as error:
        raise RepositoryError(
            f"cannot read {root}: {error.strerror}; expected a project's directory; name another one"
        ) from None
    num_gone = len(known.keys() - {file.path for file in files})
    snapshot = RepositorySnapshot(root=str(root), tenant=tenant, taken_ns=taken_ns, files=tuple(files))
    changes = Changes(
        num_new=num_new,
        num_changed=num_changed,
        num_gone=num_gone,
        num_same=len(files) - num_new - num_changed,
        num_read=num_read,
        left_out=dict(left_out.most_common()),
    )
    return snapshot, changes


def snapshot_path(directory: Path, *, tenant: str, root: Path) -> Path:
    """Return where a project's snapshot belongs."""
    return directory / f"{_hash(tenant.encode())}-{_hash(os.fsencode(root))}{SUFFIX}"


def write_snapshot(path: Path, snapshot: RepositorySnapshot) -> int:
    """Write whole or not at all and return the bytes; raises RepositoryError."""
    record = msgspec.msgpack.encode(snapshot)
    content = _header(record) + record
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name + ".", delete=False) as file:
            partial = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise RepositoryError(
            f"cannot write {path}: {error.strerror}; expected room for {len(content):,} bytes; make room, or choose "
            "another place with --set server.repository_directory=DIR; the index before, if any, stays as it was"
        ) from None
    return len(content)


def read_snapshot(path: Path) -> RepositorySnapshot:
    """Read a snapshot; raises RepositoryError for one that is damaged, cut off, of another version or not there."""
    remedy = "run `cloudcomplete index DIR` again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}; expected an index; {remedy}") from None
    header, _, record = content.partition(b"\n")
    if not header.startswith(_FORMAT + b"%d " % _VERSION):
        raise RepositoryError(f"{path} is no index of version {_VERSION}; {remedy}")
    if header + b"\n" != _header(record):
        raise RepositoryError(f"{path} is damaged or cut off; expected its checksum to hold; {remedy}")
    try:
        return msgspec.msgpack.decode(record, type=RepositorySnapshot)
    except msgspec.DecodeError as error:
        raise RepositoryError(f"{path} is damaged ({error}); {remedy}") from None


def _read(found: FoundFile, old: SourceFile | None, left_out: Counter[str]) -> SourceFile | None:
    text = read_source(found, left_out)
    if text is None:
        return None
    digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
    if old is not None and old.digest == digest:
        text = old.text
    return SourceFile(found.path, digest, found.num_bytes, found.mtime_ns, text)


def _is_unchanged(found: FoundFile, old: SourceFile, taken_ns: int) -> bool:
    is_settled = found.mtime_ns < taken_ns - _RACY_NS
    return is_settled and (found.num_bytes, found.mtime_ns) == (old.num_bytes, old.mtime_ns)


def _header(record: bytes) -> bytes:
    return _FORMAT + b"%d %s\n" % (_VERSION, _hash(record).encode())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
