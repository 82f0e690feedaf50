"""Errors of the completion cache.

    CacheError
    ├── CacheConfigError       deployment choices that cannot hold: an address, a directory
    ├── SharedStoreError       the shared store cannot do what was asked just now; the cache goes on without it
    ├── SnapshotError          a snapshot of the similarity tier that cannot be used; the tier starts empty
    └── VectorError            what an embedder gave is no vector of the dimension that it announced

Looking up and storing raise none of these: a tier that fails answers nothing, counts it and says so in its health.
They reach whoever opens a cache, or works on a store directly as `cloudcomplete cache` does. Every message says what,
expected, got and the remedy.
"""


class CacheError(Exception):
    """Base of everything the completion cache raises on purpose."""


class CacheConfigError(CacheError):
    """Deployment choices that cannot hold."""


class SharedStoreError(CacheError):
    """The shared store cannot do what was asked just now."""


class SnapshotError(CacheError):
    """A snapshot that cannot be used."""


class VectorError(CacheError, ValueError):
    """What an embedder gave is no vector of the dimension that it announced."""
