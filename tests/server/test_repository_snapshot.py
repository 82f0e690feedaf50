"""A project on disk: read again only where it changed, written whole, refused when damaged."""

import os
from pathlib import Path

import pytest

from server import repository_snapshot
from server.errors import RepositoryError
from server.repository_snapshot import read_snapshot, snapshot_path, take_snapshot, write_snapshot

LONG_AGO_NS = 1_700_000_000 * 10**9


def plant(root: Path, files: dict[str, str]) -> None:
    root.mkdir(exist_ok=True)
    for path, content in files.items():
        (root / path).write_text(content)
        os.utime(root / path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    plant(tmp_path, {"a.py": "a = 1\n", "b.py": "b = 1\n", "c.py": "c = 1\n"})
    first, changes = take_snapshot(tmp_path, tenant="t")
    assert (changes.num_new, changes.num_read, [file.path for file in first.files]) == (3, 3, ["a.py", "b.py", "c.py"])
    (tmp_path / "b.py").write_text("b = 2\n")
    (tmp_path / "c.py").unlink()
    os.utime(tmp_path / "a.py", ns=(LONG_AGO_NS, LONG_AGO_NS + 1))  # touched, not changed
    second, changes = take_snapshot(tmp_path, tenant="t", before=first)
    assert (changes.num_new, changes.num_changed, changes.num_gone, changes.num_same) == (0, 1, 1, 1)
    assert changes.num_read == 2
    assert [file.text for file in second.files] == ["a = 1\n", "b = 2\n"]


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a = 1\n")
    status = (tmp_path / "a.py").stat()
    first, _ = take_snapshot(tmp_path, tenant="")
    (tmp_path / "a.py").write_text("a = 2\n")
    os.utime(tmp_path / "a.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    second, changes = take_snapshot(tmp_path, tenant="", before=first)
    assert (second.files[0].text, changes.num_changed) == ("a = 2\n", 1)


def test_a_project_is_bounded_and_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository_snapshot, "MAX_BYTES", 12)
    plant(tmp_path, {"a.py": "a = 1\n", "b.py": "b = 1\n", "c.py": "c = 1\n"})
    snapshot, changes = take_snapshot(tmp_path, tenant="")
    assert [file.path for file in snapshot.files] == ["a.py", "b.py"]
    assert changes.left_out == {"beyond 12 bytes together": 1}


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    plant(tmp_path / "project", {"a.py": "a = 'é'\n"})
    snapshot, _ = take_snapshot(tmp_path / "project", tenant="t")
    place = snapshot_path(tmp_path / "kept", tenant="t", root=tmp_path / "project")
    assert write_snapshot(place, snapshot) == place.stat().st_size
    assert read_snapshot(place) == snapshot
    assert place.stat().st_mode & 0o077 == 0
    assert place != snapshot_path(tmp_path / "kept", tenant="u", root=tmp_path / "project")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is damaged or cut off; expected its checksum to hold; run"),
        (lambda content: content[:-1] + b"x", "is damaged or cut off"),
        (lambda content: content.replace(b"repository 1 ", b"repository 0 ", 1), "is no index of version 1; run"),
        (lambda content: b"", "is no index of version 1"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: object, message: str) -> None:
    assert callable(damage)
    place = tmp_path / "x.repository"
    write_snapshot(place, take_snapshot(tmp_path, tenant="")[0])
    place.write_bytes(damage(place.read_bytes()))
    with pytest.raises(RepositoryError, match=message):
        read_snapshot(place)


def test_a_full_disk_leaves_the_index_before_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "kept" / "x.repository"
    snapshot, _ = take_snapshot(tmp_path, tenant="")
    write_snapshot(place, snapshot)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RepositoryError, match=r"cannot write .*: No space left on device; expected room for \d+ bytes"):
        write_snapshot(place, snapshot)
    assert [path.name for path in place.parent.iterdir()] == ["x.repository"]
    assert read_snapshot(place) == snapshot


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"cannot read .*gone: No such file or directory; expected a project's"):
        take_snapshot(tmp_path / "gone", tenant="")
    with pytest.raises(RepositoryError, match=r"cannot read .*gone: No such file or directory; expected an index"):
        read_snapshot(tmp_path / "gone")
