"""A shared store for a fleet: Redis or Valkey.

Records have names of their own for each version and tenant, and a time to live. How much the server keeps, and what
goes first, is its own setting (`maxmemory`, `maxmemory-policy allkeys-lru`): a fleet's store has one owner.

No call waits longer than the timeout, and none is tried twice: who calls goes on without it (`shared_tier.py`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from cache.errors import CacheConfigError, SharedStoreError
from cache.key import tenant_name
from cache.record import RECORD_VERSION
from cache.store import Stored, StoreSize

SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}
"""Scheme of an address: the client's name for it."""
_PREFIX = f"cloudcomplete:{RECORD_VERSION}"
_AT_ONCE = 512


class RedisStore:
    """Records in a Redis or Valkey server."""

    def __init__(self, url: str, *, ttl_s: float, timeout_s: float, now: Callable[[], float] = time.time) -> None:
        """Prepare a client, without connecting; raises CacheConfigError for an address that is none."""
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise CacheConfigError(
                f"cache.shared is {without_secrets(url)}, but the redis package is not installed; "
                "install cloudcomplete[redis]"
            ) from None
        scheme, separator, rest = url.partition("://")
        try:
            self._client: Any = redis.Redis.from_url(
                f"{SCHEMES[scheme]}{separator}{rest}",
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
        except (KeyError, ValueError) as error:
            raise CacheConfigError(
                f"cache.shared is {without_secrets(url)!r}: {error}; "
                f"expected an address such as redis://127.0.0.1:6379/0, with one of: {', '.join(SCHEMES)}"
            ) from None
        self._errors = (redis.RedisError, OSError)
        self._ttl_s = ttl_s
        self._now = now
        self.place = without_secrets(url)

    def get(self, tenant: str, digest: bytes) -> bytes | None:
        """Return a record that is not too old."""
        with self._working():
            record: bytes | None = self._client.get(_name(tenant, digest))
            return record

    def put(self, batch: Sequence[Stored]) -> None:
        """Keep records; when it returns, the server has them."""
        with self._working():
            pipeline = self._client.pipeline(transaction=False)
            for stored in batch:
                left_s = stored.created_s + self._ttl_s - self._now()
                if left_s > 0:
                    pipeline.set(_name(stored.tenant, stored.digest), stored.record, px=max(1, int(left_s * 1000)))
            pipeline.execute()

    def delete(self, tenant: str, digest: bytes) -> None:
        """Forget a record, if it is there."""
        with self._working():
            self._client.unlink(_name(tenant, digest))

    def clear(self, tenant: str | None = None) -> int:
        """Forget a tenant's records, or all of this version; return how many."""
        with self._working():
            return sum(self._client.unlink(*names) for names in self._names(tenant))

    def measure(self) -> StoreSize:
        """Count what is there, by asking for every record."""
        with self._working():
            num_entries = num_bytes = 0
            for names in self._names(None):
                pipeline = self._client.pipeline(transaction=False)
                for name in names:
                    pipeline.strlen(name)
                num_entries += len(names)
                num_bytes += sum(pipeline.execute())
            return StoreSize(num_entries=num_entries, num_bytes=num_bytes)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _names(self, tenant: str | None) -> Iterator[tuple[bytes, ...]]:
        pattern = f"{_PREFIX}:{'*' if tenant is None else tenant_name(tenant)}:*"
        names = self._client.scan_iter(match=pattern, count=_AT_ONCE)
        while group := tuple(islice(names, _AT_ONCE)):
            yield group

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise SharedStoreError(f"{self.place}: {error}; the cache goes on without it and tries again") from None


def without_secrets(url: str) -> str:
    """Return an address without user, password and parameters."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{host}{parts.path}"


def _name(tenant: str, digest: bytes) -> str:
    return f"{_PREFIX}:{tenant_name(tenant)}:{digest.hex()}"
