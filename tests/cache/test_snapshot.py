"""Snapshots: read back exactly, or refused with the reason."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cache.errors import SnapshotError
from cache.key import tenant_name
from cache.snapshot import Entry, Snapshot, read_snapshot, snapshot_path, snapshots_of, write_snapshot


def make_snapshot() -> Snapshot:
    entries = [Entry(bytes([i]) * 32, f"head{i}", "texté", float(i)) for i in range(3)]
    return Snapshot(embedder="e", tenant="t", entries=entries, vectors=np.arange(6, dtype=np.float32).reshape(3, 2))


def written(directory: Path) -> Path:
    path = snapshot_path(directory, tenant="t", realm=b"r")
    return write_snapshot(path, make_snapshot()).replace(path)


def read(path: Path, *, tenant: str = "t", embedder: str = "e", dimension: int = 2) -> Snapshot:
    return read_snapshot(path, tenant=tenant, embedder=embedder, dimension=dimension)


def test_a_snapshot_is_read_as_it_was_written_and_only_the_owner_may_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "new")
    snapshot = read(path)
    assert snapshot.entries == make_snapshot().entries
    assert np.array_equal(snapshot.vectors, make_snapshot().vectors)
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_empty_snapshot_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "x"
    empty = Snapshot(embedder="e", tenant="t", entries=[], vectors=np.empty((0, 2), np.float32))
    write_snapshot(path, empty).replace(path)
    assert read(path).vectors.shape == (0, 2)


def test_tenants_have_files_of_their_own(tmp_path: Path) -> None:
    paths = [snapshot_path(tmp_path, tenant=tenant, realm=b"r") for tenant in ("a/../*", "b")]
    for path in paths:
        path.touch()
    assert snapshots_of(tmp_path, "b") == [paths[1]]
    left_over = write_snapshot(paths[1], make_snapshot())
    assert snapshots_of(tmp_path, "b") == [paths[1], left_over]
    left_over.unlink()
    assert snapshots_of(tmp_path, None) == sorted(paths)
    assert all(path.parent == tmp_path for path in paths)


def test_what_is_not_there_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(SnapshotError):
            read(path)


def test_a_flipped_byte_anywhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(SnapshotError):
            read(path)


def sealed(body: bytes, header: bytes = b"cloudcomplete similarity 1\n") -> bytes:
    return header + hashlib.blake2b(body, digest_size=16).digest() + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sealed(b"", b"cloudcomplete similarity 0\n"), "it begins with b'cloudcomplete similarity 0'; expected b'clou"),
        (b"cloudcomplete similarity 1", "another version wrote it"),
        (sealed(b"x")[:-1], "its checksum is not that of its content: it was damaged or cut off"),
        (sealed(b"\xc1"), "its record cannot be read: "),
    ],
)
def test_what_is_refused_says_why_and_that_nothing_has_to_be_done(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(SnapshotError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path} is not used: ")
    assert message in str(raised.value)
    assert str(raised.value).endswith("it will be replaced, nothing has to be done")


def test_another_tenants_or_another_embedding_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    for other in ({"tenant": "u"}, {"embedder": "f"}, {"dimension": 3}):
        with pytest.raises(SnapshotError, match=r"it was made for 'e' and 2 dimensions; expected '[ef]'"):
            read(path, **other)  # type: ignore[arg-type]


def test_vectors_that_do_not_fit_the_entries_are_refused(tmp_path: Path) -> None:
    body = msgspec.msgpack.encode(
        {"embedder": "e", "tenant": tenant_name("t"), "entries": [], "dimension": 2, "vectors": b"1234"}
    )
    path = tmp_path / "x"
    path.write_bytes(sealed(body))
    with pytest.raises(SnapshotError, match="it has 0 entries and 4 bytes of vectors"):
        read(path)


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"cannot read .*: Is a directory; the tier starts empty"):
        read(tmp_path)


def test_a_failed_write_leaves_nothing_and_the_old_one_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    old = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cache.snapshot.os.fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_snapshot(path, make_snapshot())
    assert [(other, other.read_bytes()) for other in tmp_path.iterdir()] == [(path, old)]
