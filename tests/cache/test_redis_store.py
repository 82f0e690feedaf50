"""The store in a Redis server, against Debian's; and addresses that are none."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from cache.errors import CacheConfigError, SharedStoreError
from cache.redis_store import RedisStore, without_secrets
from cache.store import Stored, StoreSize
from loadtest.load_run import free_port
from loadtest.redis_server import PROGRAM, running_redis
from tests.cache.made_keys import Clock

needs_client = pytest.mark.skipif(find_spec("redis") is None, reason="the redis package is not installed")
needs_server = pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")


def make_store(port: int, *, timeout_s: float = 5.0, clock: Clock | None = None) -> RedisStore:
    return RedisStore(f"valkey://127.0.0.1:{port}/0", ttl_s=60, timeout_s=timeout_s, now=clock or Clock())


def make_stored(number: int, *, tenant: str = "t") -> Stored:
    return Stored(tenant, bytes([number]) * 32, b"record %d" % number, Clock().now_s)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    with running_redis(port, tmp_path):
        yield port


@needs_client
@needs_server
def test_records_are_kept_for_each_tenant(port: int) -> None:
    store = make_store(port)
    store.put([make_stored(number, tenant="a*") for number in range(3)] + [make_stored(9, tenant="b")])
    assert store.get("a*", make_stored(1).digest) == b"record 1"
    assert store.get("b", make_stored(1).digest) is None
    assert store.measure() == StoreSize(num_entries=4, num_bytes=32)
    store.delete("b", make_stored(1).digest)
    store.delete("a*", make_stored(1).digest)
    assert store.get("a*", make_stored(1).digest) is None
    assert store.clear("a*") == 2
    assert store.get("b", make_stored(9).digest) == b"record 9"
    assert (store.clear(), store.clear()) == (1, 0)
    store.close()


@needs_client
@needs_server
def test_records_live_only_as_long_as_answers_may(port: int) -> None:
    clock = Clock()
    store = make_store(port, clock=clock)
    store.put([make_stored(1)])
    assert 59_000 <= store._client.pttl(next(store._names(None))[0]) <= 60_000
    clock.now_s += 61
    store.put([make_stored(2)])
    assert store.get("t", make_stored(2).digest) is None
    store.close()


@needs_client
@needs_server
def test_a_server_that_goes_and_comes_back_is_used_again(tmp_path: Path) -> None:
    port = free_port()
    store = make_store(port)
    with pytest.raises(SharedStoreError, match=rf"valkey://127.0.0.1:{port}/0: .* the cache goes on without it"):
        store.get("t", make_stored(1).digest)
    for _ in range(2):
        with running_redis(port, tmp_path):
            store.put([make_stored(1)])
            assert store.get("t", make_stored(1).digest) == b"record 1"
        with pytest.raises(SharedStoreError):
            store.get("t", make_stored(1).digest)
    store.close()


@needs_client
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1", "cache.shared is 'http://127.0.0.1:1': 'http'; expected an address such as redis://"),
        ("redis://u:secret@h:port", "cache.shared is 'redis://h:port': "),
        ("redis://[x", "cache.shared is 'an address that cannot be read': "),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str, message: str) -> None:
    with pytest.raises(CacheConfigError) as raised:
        RedisStore(url, ttl_s=1, timeout_s=1)
    assert str(raised.value).startswith(message)
    assert "secret" not in str(raised.value)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(CacheConfigError) as raised:
        RedisStore("redis://:secret@h:1/0", ttl_s=1, timeout_s=1)
    assert str(raised.value) == (
        "cache.shared is redis://h:1/0, but the redis package is not installed; install cloudcomplete[redis]"
    )


def test_addresses_are_shown_without_user_password_and_parameters() -> None:
    assert without_secrets("rediss://u:p@h:1/2?password=p") == "rediss://h:1/2"
