"""Records on disk: bounded, turned over, read back, torn, and a disk that is full."""

import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.record_file import MAX_WAITING, RecordFile, read_records


class Number(msgspec.Struct):
    value: int


def numbers(path: Path) -> list[int]:
    return [record.value for record in read_records(path, Number)]


def test_records_come_back_in_their_order(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "deep" / "records", max_bytes=10_000)
    for value in range(3):
        file.append(Number(value))
        file.flush()
    assert numbers(tmp_path / "deep" / "records") == [0, 1, 2]


def test_the_bound_holds_and_the_newest_stay(tmp_path: Path) -> None:
    path = tmp_path / "records"
    file = RecordFile(path, max_bytes=400)
    for value in range(500):
        file.append(Number(value))
        if value % 7 == 0:
            file.flush()
    file.flush()
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 400
    kept = numbers(path)
    assert kept == list(range(500 - len(kept), 500))
    assert len(kept) > 10


def test_a_torn_line_is_left_out_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(b'{"value":1}\n{"val')
    file = RecordFile(path, max_bytes=10_000)
    file.append(Number(2))
    file.flush()
    assert numbers(path) == [1, 2]


def test_a_full_disk_is_said_and_over_when_it_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RecordFile(tmp_path / "records", max_bytes=10_000)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "open", refuse)
        file.append(Number(1))
        file.flush()
    assert file.problem == f"records cannot be written to {tmp_path / 'records'}: No space left on device"
    assert file.num_dropped == 1
    file.append(Number(2))
    file.flush()
    assert (file.problem, numbers(tmp_path / "records")) == ("", [2])


def test_more_than_can_wait_is_dropped(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records", max_bytes=10_000_000)
    for value in range(MAX_WAITING + 5):
        file.append(Number(value))
    assert file.num_dropped == 5
