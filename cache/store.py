"""What the shared tier needs of a store: bytes under a tenant and a digest. Two are there: SQLite's and Redis'."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Stored(msgspec.Struct, frozen=True):
    """A record on its way into a store."""

    tenant: str
    digest: bytes
    record: bytes
    created_s: float


class StoreSize(msgspec.Struct, frozen=True, kw_only=True):
    """How much a store holds."""

    num_entries: int
    num_bytes: int
    """Of records; the store needs more."""


class Store(Protocol):
    """Keeps records. All methods may be called from any thread and raise SharedStoreError when they cannot do it."""

    @property
    def place(self) -> str:
        """Where it is, for people; without secrets."""

    def get(self, tenant: str, digest: bytes) -> bytes | None:
        """Return a record that is not too old."""

    def put(self, batch: Sequence[Stored]) -> None:
        """Keep records; when it returns, they are kept."""

    def delete(self, tenant: str, digest: bytes) -> None:
        """Forget a record, if it is there."""

    def clear(self, tenant: str | None = None) -> int:
        """Forget a tenant's records, or all; return how many."""

    def measure(self) -> StoreSize:
        """Count what is there; may take long."""

    def close(self) -> None:
        """Let go of files and connections."""
