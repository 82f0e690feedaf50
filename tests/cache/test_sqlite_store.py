"""The store in a file: bounded, shared, killed, damaged, full."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cache.errors import CacheConfigError, SharedStoreError
from cache.sqlite_store import FILE_NAME, SCHEMA_VERSION, SqliteStore
from cache.store import Stored, StoreSize
from tests.cache.made_keys import Clock


def make_store(directory: Path, *, max_bytes: int = 1 << 20, clock: Clock | None = None) -> SqliteStore:
    return SqliteStore(directory, max_bytes=max_bytes, ttl_s=60, busy_s=5, now=clock or Clock())


def make_stored(number: int, *, tenant: str = "t", num_bytes: int = 100) -> Stored:
    return Stored(tenant, number.to_bytes(32, "big"), bytes([number % 256]) * num_bytes, Clock().now_s)


def is_there(store: SqliteStore, number: int, tenant: str = "t") -> bool:
    return store.get(tenant, number.to_bytes(32, "big")) is not None


def test_a_record_outlives_the_store_and_only_its_owner_may_read_the_files(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    store = make_store(directory)
    store.put([make_stored(1)])
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    store.close()
    again = make_store(directory)
    assert again.get("t", make_stored(1).digest) == make_stored(1).record
    again.check_integrity()
    assert again.place == str(directory / FILE_NAME)


def test_a_tenant_finds_only_its_own(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.put([make_stored(1, tenant="t"), make_stored(2, tenant="u")])
    assert not is_there(store, 1, "u")
    store.delete("u", make_stored(1).digest)
    assert is_there(store, 1, "t")
    assert store.clear("t") == 1
    assert is_there(store, 2, "u")
    assert store.clear() == 1
    assert store.measure() == StoreSize(num_entries=0, num_bytes=0)


def test_the_same_digest_again_replaces(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.put([make_stored(1), make_stored(1, num_bytes=7)])
    assert store.measure() == StoreSize(num_entries=1, num_bytes=7)
    store.check_integrity()


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path, max_bytes=450, clock=clock)
    for number in range(4):
        clock.now_s += 1
        store.put([make_stored(number)])
    assert is_there(store, 0)
    clock.now_s += 1
    store.put([make_stored(4)])
    assert [is_there(store, number) for number in range(5)] == [True, False, True, True, True]
    assert store.num_evicted == 1
    store.check_integrity()


def test_what_is_too_old_is_gone(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path, clock=clock)
    store.put([make_stored(1)])
    clock.now_s += 61
    assert not is_there(store, 1)
    store.put([])
    assert (store.measure().num_entries, store.num_evicted) == (0, 1)


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    one, other = make_store(tmp_path), make_store(tmp_path)
    one.put([make_stored(1)])
    assert is_there(other, 1)
    other.clear()
    assert not is_there(one, 1)


WRITER = """
import sys
from pathlib import Path
from cache.sqlite_store import SqliteStore
from tests.cache.test_sqlite_store import make_stored
store = SqliteStore(Path(sys.argv[1]), max_bytes=1 << 30, ttl_s=60, now=lambda: 1_000_000.0)
number = int(sys.argv[2])
while True:
    batch = [make_stored(number + i, num_bytes=3_000) for i in range(7)]
    store.put(batch)
    number += len(batch)
    print(number, flush=True)
"""


def test_killing_a_writer_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    kept = 0
    for num_lines in (1, 2, 3, 5, 8, 13, 30, 60):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(kept)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(num_lines):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)  # while the next transaction is written
        acknowledged = [int(line) for line in process.stdout if line.endswith("\n")]
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        store = make_store(tmp_path, max_bytes=1 << 30)
        store.check_integrity()
        assert store.num_set_aside == 0
        num_entries = store.measure().num_entries
        assert num_entries % 7 == 0, "a transaction is there in part"
        assert num_entries >= kept + 7 * num_lines
        assert num_entries >= max(acknowledged, default=0)
        assert all(is_there(store, number) for number in range(num_entries))
        kept = num_entries
        store.close()


def damaged(directory: Path, damage: str) -> None:
    """Fill a file, then do to it what happens to files."""
    store = make_store(directory)
    store.put([make_stored(number, num_bytes=5_000) for number in range(50)])
    store.close()
    path = directory / FILE_NAME
    if damage == "older":
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
        connection.close()
    elif damage == "another program's":
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE a (b)")
        connection.close()
    elif damage == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "cut off in its header":
        os.truncate(path, 50)
    elif damage == "overwritten":
        content = path.read_bytes()
        path.write_bytes(content[:8192] + b"\xff" * 16_384 + content[8192 + 16_384 :])
    else:
        path.write_bytes(b"no database at all" * 100)


DAMAGES = {
    "older": f"its version is 636c6363/{SCHEMA_VERSION - 1}, expected 636c6363/{SCHEMA_VERSION}",
    "another program's": f"its version is 0/0, expected 636c6363/{SCHEMA_VERSION}",
    "cut off": "database disk image is malformed",
    "cut off in its header": "database disk image is malformed",
    "overwritten": "",
    "nonsense": "file is not a database",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_used_is_set_aside_and_a_new_one_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    damaged(tmp_path, damage)
    content = (tmp_path / FILE_NAME).read_bytes()
    store = make_store(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not is_there(store, 1)
    [aside] = tmp_path.glob("completions.aside-*.sqlite3")
    assert aside.read_bytes() == content
    assert f"{tmp_path / FILE_NAME} cannot be used: " in caplog.text
    assert f"; it is kept as {aside.name}, and a new one begins" in caplog.text
    assert DAMAGES[damage] in caplog.text
    store.put([make_stored(1)])
    assert is_there(store, 1)
    store.check_integrity()


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    store = make_store(tmp_path)
    store.put([make_stored(1)])
    assert (is_there(store, 1), store.num_set_aside) == (True, 0)


def test_damage_that_shows_while_it_is_used_is_set_aside_too(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.put([make_stored(number, num_bytes=5_000) for number in range(50)])
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    os.truncate(tmp_path / FILE_NAME, 20_000)
    with pytest.raises(SharedStoreError, match="malformed; the cache goes on without it and tries again"):
        all(is_there(store, number) for number in range(50))
    assert store.num_set_aside == 1
    store.put([make_stored(1)])
    assert is_there(store, 1)
    store.check_integrity()


def test_a_full_disk_keeps_what_is_there_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.put([make_stored(1)])
    with store._working() as connection:
        num_pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {num_pages + 2}")
    with pytest.raises(SharedStoreError, match="database or disk is full; the cache goes on without it"):
        store.put([make_stored(number, num_bytes=9_000) for number in range(2, 20)])
    assert is_there(store, 1)
    assert not is_there(store, 2)
    store.check_integrity()
    store.put([make_stored(2)])  # opened anew, without that bound
    assert is_there(store, 2)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheConfigError) as raised:
        make_store(tmp_path / "file" / "x")
    assert str(raised.value) == (
        f"cannot make the cache's directory {tmp_path}/file/x: Not a directory; "
        'set cache.directory to a writable one, or cache.shared = "none"'
    )


class SqliteMachine(RuleBasedStateMachine):
    """Against a dictionary: what is found is what was put last; what is missing was displaced."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = make_store(directory, max_bytes=2_000, clock=self.clock)
        self.store.clear()
        self.twin: dict[bytes, Stored] = {}

    @rule(number=st.integers(0, 9), tenant=st.sampled_from("tu"), num_bytes=st.integers(0, 900))
    def put(self, number: int, tenant: str, num_bytes: int) -> None:
        stored = Stored(tenant, (number, tenant).__repr__().encode(), b"x" * num_bytes, self.clock.now_s)
        self.store.put([stored])
        self.twin[stored.digest] = stored
        self.twin = {
            digest: kept for digest, kept in self.twin.items() if self.store.get(kept.tenant, digest) is not None
        }
        assert stored.digest in self.twin or num_bytes > 0

    @rule(number=st.integers(0, 9), tenant=st.sampled_from("tu"))
    def get(self, number: int, tenant: str) -> None:
        digest = (number, tenant).__repr__().encode()
        found = self.store.get(tenant, digest)
        expected = self.twin.get(digest)
        if expected is not None and self.clock.now_s - expected.created_s > 60:
            expected = None
        assert found == (None if expected is None else expected.record)

    @rule(tenant=st.sampled_from(["t", None]))
    def clear(self, tenant: str | None) -> None:
        self.store.clear(tenant)
        self.twin = {digest: kept for digest, kept in self.twin.items() if tenant not in (None, kept.tenant)}

    @rule()
    def reopen(self) -> None:
        self.store.close()

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.clock.now_s += seconds

    @invariant()
    def is_whole(self) -> None:
        self.store.check_integrity()

    def teardown(self) -> None:
        self.store.close()


def test_random_operations_keep_a_store_whole(tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: SqliteMachine(tmp_path), settings=settings(max_examples=20, stateful_step_count=25)
    )
