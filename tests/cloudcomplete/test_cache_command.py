"""`cloudcomplete cache`: over a directory as a server leaves it."""

import json
from pathlib import Path

import pytest

from cache.completion_cache import CompletionCache
from cache.config import CacheConfig
from cache.sqlite_store import FILE_NAME
from tests.cache.made_keys import make_answer, make_key
from tests.cloudcomplete.shell import Shell


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    directory = tmp_path / "c"
    cache = CompletionCache(CacheConfig(directory=str(directory)))
    for tenant in ("t", "u"):
        for number in range(3):
            cache.store(make_key(f"x{number}", tenant=tenant), make_answer(created_s=0.0))
    cache.close()
    return directory


def numbers(out: str) -> dict[str, str]:
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}


def test_stats_shows_what_is_kept(shell: Shell, filled: Path, tmp_path: Path) -> None:
    done = shell("cache", "stats", "--set", f"cache.directory={filled}", "--json", tmp_path / "out.json")
    assert (done.code, done.err) == (0, "")
    shown = numbers(done.out)
    assert shown["shared"] == str(filled / FILE_NAME)
    assert (shown["shared_entries"], shown["snapshots"]) == ("6", "2")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["shared_bytes"] > 0
    assert written["snapshot_bytes"] == sum(path.stat().st_size for path in filled.glob("*.similar"))


def test_clear_forgets_one_tenant_or_everything(shell: Shell, filled: Path) -> None:
    where = ("--set", f"cache.directory={filled}")
    assert numbers(shell("cache", "clear", "--tenant", "t", *where).out) == {
        "cleared_entries": "3",
        "cleared_snapshots": "1",
    }
    assert numbers(shell("cache", "stats", *where).out)["shared_entries"] == "3"
    assert numbers(shell("cache", "clear", *where).out) == {"cleared_entries": "3", "cleared_snapshots": "1"}
    assert numbers(shell("cache", "stats", *where).out)["snapshots"] == "0"


def test_where_nothing_was_stored_nothing_is_made(shell: Shell, tmp_path: Path) -> None:
    where = ("--set", f"cache.directory={tmp_path / 'c'}")
    assert numbers(shell("cache", "stats", *where).out)["shared_entries"] == "0"
    assert numbers(shell("cache", "clear", *where).out)["cleared_entries"] == "0"
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("stats", "--tenant", "t"), 2, "cloudcomplete cache: --tenant belongs to clear; stats counts all tenants tog"),
        (("forget",), 2, "cloudcomplete cache: argument action: invalid choice: 'forget'"),
        (
            ("clear", "--tenant", "t", "--set", "cache.is_shared_between_tenants=true"),
            1,
            "cloudcomplete: cannot clear only the tenant 't': ",
        ),
        (("stats", "--set", "cache.shared=http://h"), 1, "cloudcomplete: cache.shared is 'http://h': 'http'; expected"),
        (
            ("stats", "--set", "cache.shared=redis://127.0.0.1:1"),
            1,
            "cloudcomplete: redis://127.0.0.1:1: Error",
        ),
        (("stats", "--json", "/no/such/place/out"), 1, "cloudcomplete: cannot write the results to /no/such/place/out"),
    ],
)
def test_a_mistake_is_one_line(shell: Shell, arguments: tuple[str, ...], code: int, message: str) -> None:
    pytest.importorskip("redis", reason="the redis package is not installed")
    done = shell("cache", *arguments)
    assert done.code == code
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1
