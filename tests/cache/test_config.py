"""Choices that cannot hold are refused."""

from pathlib import Path
from typing import Any

import pytest

from cache.config import CacheConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bytes": 0}, "memory_bytes is 0; expected a number above 0"),
        ({"ttl_s": float("inf")}, "ttl_s is inf; expected a number above 0"),
        ({"similar_entries": -1}, "similar_entries is -1; expected 0 or more"),
        ({"snapshot_s": float("nan")}, "snapshot_s is nan; expected 0 or more"),
        ({"similar_min_score": 1.5}, "similar_min_score is 1.5; expected 0 to 1"),
        ({"shared": "redis"}, 'shared is \'redis\'; expected "sqlite", "none" or an address with "://"'),
    ],
)
def test_what_cannot_hold_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        CacheConfig(**changes)
    assert str(raised.value) == message


def test_an_address_with_a_password_is_not_repeated() -> None:
    assert CacheConfig(shared="redis://:secret@h:1").shared == "redis://:secret@h:1"


def test_the_directory_is_in_the_users_cache_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert CacheConfig().resolved_directory == Path("/x/cloudcomplete/completions")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert CacheConfig().resolved_directory == Path.home() / ".cache/cloudcomplete/completions"
    assert CacheConfig(directory="~/c").resolved_directory == Path.home() / "c"
