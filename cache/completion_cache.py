"""The completion cache: completions in, completions out. Read this first.

    lookup ──▶ memory (exact, type-through) ──▶ shared (exact) ──▶ nothing: ask the model
    draft_for ──▶ similarity: what followed at places like this one, for the model to verify
    store ──▶ memory at once; similarity and shared in the background

Only what is exactly what the model was asked is served; what is merely similar is a draft (`docs/decisions/0008`).
Tenants never share entries, in any tier, unless configured to.

Nothing here fails a request: what a tier cannot do is logged, counted and said by `health`. `lookup_memory`, `store`,
`join`, `extend` and the notes take microseconds and may be called on an event loop; `lookup_shared`, `lookup` and
`draft_for` may wait for a file, a server or a lock, and belong on another thread.

Knows keys and texts (`key.py`): no requests, no models, no network protocol but the shared store's.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from cache.config import CacheConfig
from cache.embedder import Embedder, HashedTokens
from cache.errors import CacheConfigError
from cache.flights import Flight, Flights
from cache.key import Answer, Draft, Hit, Key, Source
from cache.memory_tier import MemoryTier
from cache.redis_store import RedisStore
from cache.shared_tier import SharedTier
from cache.similarity_tier import SimilarityTier
from cache.sqlite_store import SqliteStore
from cache.store import Store
from cache.worker import Worker

logger = logging.getLogger(__name__)

Origin = Source | Literal["similar"]
"""Where an answer or a draft came from."""
_BATCH = 64


class OriginStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one source."""

    num_hits: int = 0
    num_accepts: int = 0
    """Answers that a user took; of drafts: those of which the model kept something."""
    num_false_hits: int = 0
    """Answers that turned out not to be the model's; of drafts: those of which it kept nothing."""


class TierStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one tier holds and had to give up."""

    num_entries: int = 0
    num_bytes: int = 0
    num_evicted: int = 0


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and gauges of this moment."""

    num_lookups: int
    num_misses: int
    """Lookups that no tier answered."""
    num_drafts_asked: int
    num_stored: int
    num_dropped_writes: int
    """Answers that did not get into tiers 2 or 3: too many were waiting, or the store failed."""
    num_store_failures: int
    num_refused_records: int
    """Records and snapshots that were not what was written."""
    sources: dict[str, OriginStats]
    tiers: dict[str, TierStats]
    """"memory" and "similar"; the shared tier's size is `shared.store.measure()`, which may take long."""
    health: str


class _Write(NamedTuple):
    key: Key
    answer: Answer


class CompletionCache:
    """Three tiers behind one face. May be used from any thread."""

    def __init__(
        self, config: CacheConfig, *, embedder: Embedder | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """Open the tiers; raises CacheConfigError for a directory or an address that can never work."""
        self._config = config
        self._now = now
        store = open_store(config, now=now)
        self.memory = MemoryTier(max_bytes=config.memory_bytes, ttl_s=config.ttl_s, now=now)
        self.shared = None if store is None else SharedTier(store, ttl_s=config.ttl_s, now=now)
        self._writer = Worker("completion-cache-writer")
        self._upkeep = Worker("completion-cache-upkeep")
        self.similarity: SimilarityTier | None = None
        if config.similar_entries:
            self.similarity = SimilarityTier(
                embedder or HashedTokens(),
                max_entries=config.similar_entries,
                ttl_s=config.ttl_s,
                min_score=config.similar_min_score,
                worker=self._upkeep,
                directory=config.resolved_directory if config.snapshot_s else None,
                now=now,
            )
        self._flights = Flights()
        self._waiting: deque[_Write] = deque()
        self._waiting_lock = threading.Lock()
        self._writing = threading.Lock()
        self._saved_at_s = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._counts_lock = threading.Lock()

    def lookup(self, key: Key) -> Hit | None:
        """Return an answer that may be served, from any tier."""
        return self.lookup_memory(key) or self.lookup_shared(key)

    def lookup_memory(self, key: Key) -> Hit | None:
        """Return an answer from this process; the first half of `lookup`."""
        self._count("lookups")
        hit = self.memory.lookup(self._owned(key))
        if hit is not None:
            self._count(f"hits {hit.source}")
        return hit

    def lookup_shared(self, key: Key) -> Hit | None:
        """Return an answer that another process, or this one earlier, stored; the second half of `lookup`."""
        key = self._owned(key)
        answer = None if self.shared is None else self.shared.lookup(key)
        if answer is None:
            self._count("misses")
            return None
        self.memory.store(key, answer)
        self._count("hits shared")
        return Hit(answer=answer, source="shared")

    def draft_for(self, key: Key) -> Draft | None:
        """Return what followed at a place like this one."""
        if self.similarity is None:
            return None
        self._count("drafts")
        draft = self.similarity.draft_for(self._owned(key))
        if draft is not None:
            self._count("hits similar")
        return draft

    def store(self, key: Key, answer: Answer) -> None:
        """Keep an answer of the model: in memory at once, in the other tiers soon."""
        key = self._owned(key)
        if not answer.created_s:
            answer = msgspec.structs.replace(answer, created_s=self._now())
        self.memory.store(key, answer)
        self._count("stored")
        if self.similarity is None and self.shared is None:
            return
        with self._waiting_lock:
            is_dropped = len(self._waiting) >= self._config.max_waiting_writes
            if not is_dropped:
                self._waiting.append(_Write(key, answer))
        if is_dropped or not self._writer.submit(self._write_some):
            self._count("dropped")

    def extend(self, key: Key, accepted: str) -> None:
        """Note that the user took `accepted` of a key's answer: what is left of it answers the key as it is then."""
        self.memory.extend(self._owned(key), accepted)

    def join(self, key: Key) -> Flight:
        """Take part in the flight of equal requests; the leader asks the model, `store`s and `finish`es."""
        return self._flights.join(self._owned(key).digest)

    def note_accept(self, origin: Origin) -> None:
        """Count an answer that a user took, or a draft of which the model kept something."""
        self._count(f"accepts {origin}")

    def note_false_hit(self, origin: Origin) -> None:
        """Count an answer that was not the model's, or a draft of which it kept nothing."""
        self._count(f"false_hits {origin}")

    @property
    def health(self) -> str:
        """ "" while all is well, else what is wrong, for a health check's details."""
        return "" if self.shared is None else self.shared.health

    def stats(self) -> CacheStats:
        """Return counters and gauges, without asking the store."""
        with self._counts_lock:
            counts = self._counts.copy()
        origins: tuple[Origin, ...] = ("memory", "type-through", "shared", "similar")
        tiers = {"memory": _measure(self.memory)}
        if self.similarity is not None:
            tiers["similar"] = _measure(self.similarity)
        shared, similarity = self.shared, self.similarity
        return CacheStats(
            num_lookups=counts["lookups"],
            num_misses=counts["misses"],
            num_drafts_asked=counts["drafts"],
            num_stored=counts["stored"],
            num_dropped_writes=counts["dropped"] + (shared.num_lost_writes if shared else 0),
            num_store_failures=shared.num_failures if shared else 0,
            num_refused_records=(shared.num_refused_records if shared else 0)
            + (similarity.num_refused_snapshots if similarity else 0),
            sources={
                origin: OriginStats(
                    num_hits=counts[f"hits {origin}"],
                    num_accepts=counts[f"accepts {origin}"],
                    num_false_hits=counts[f"false_hits {origin}"],
                )
                for origin in origins
            },
            tiers=tiers,
            health=self.health,
        )

    def clear(self, tenant: str | None = None) -> int:
        """Forget a tenant's entries, or all, in every tier; return how many memory and store forgot.

        Waits for the store. Raises SharedStoreError when that fails, and CacheConfigError for one tenant of a cache
        that is shared between them.
        """
        check_clearing(self._config, tenant)
        with self._writing:
            with self._waiting_lock:
                kept = [write for write in self._waiting if tenant not in (None, write.key.tenant)]
                self._waiting.clear()
                self._waiting.extend(kept)
            num_cleared = self.memory.clear(tenant)
            if self.similarity is not None:
                self.similarity.clear(tenant)
            return num_cleared + (0 if self.shared is None else self.shared.clear(tenant))

    def flush(self, *, timeout_s: float) -> bool:
        """Wait until what was stored so far is in every tier; False when it took too long."""
        return self._writer.drain(timeout_s=timeout_s) and self._upkeep.drain(timeout_s=timeout_s)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Write what waits, and a last snapshot; what takes longer is given up. Closing twice is harmless."""
        self._writer.close(timeout_s=timeout_s)
        if self.similarity is not None:
            self._upkeep.submit(self.similarity.save)
        self._upkeep.close(timeout_s=timeout_s)
        if self.shared is not None:
            self.shared.close()

    def check_integrity(self) -> None:
        """Assert the invariants of everything in this process."""
        self.memory.check_integrity()
        self._flights.check_integrity()
        if self.similarity is not None:
            self.similarity.check_integrity()
        assert len(self._waiting) <= self._config.max_waiting_writes, "more writes wait than may"

    def _owned(self, key: Key) -> Key:
        """Return a key as the tiers see it: without its tenant where tenants share."""
        return msgspec.structs.replace(key, tenant="") if self._config.is_shared_between_tenants else key

    def _count(self, what: str) -> None:
        with self._counts_lock:
            self._counts[what] += 1

    def _write_some(self) -> None:
        """Bring what waits into tiers 2 and 3; one call may do the work of several."""
        with self._writing:
            with self._waiting_lock:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            if not batch:
                return
            if self.shared is not None:
                self.shared.put(batch)
            if self.similarity is not None:
                for key, answer in batch:
                    self.similarity.store(key, answer)
        is_due = self._config.snapshot_s and time.monotonic() - self._saved_at_s >= self._config.snapshot_s
        if is_due and self.similarity is not None:
            self._saved_at_s = time.monotonic()
            self._upkeep.submit(self.similarity.save)


def open_store(config: CacheConfig, *, now: Callable[[], float] = time.time) -> Store | None:
    """Return the store that a configuration names, None for none; raises CacheConfigError."""
    if config.shared == "none":
        return None
    if config.shared == "sqlite":
        return SqliteStore(config.resolved_directory, max_bytes=config.shared_bytes, ttl_s=config.ttl_s, now=now)
    return RedisStore(config.shared, ttl_s=config.ttl_s, timeout_s=config.shared_timeout_s, now=now)


def check_clearing(config: CacheConfig, tenant: str | None) -> None:
    """Raise CacheConfigError when one tenant's entries cannot be told from another's."""
    if tenant is not None and config.is_shared_between_tenants:
        raise CacheConfigError(
            f"cannot clear only the tenant {tenant!r}: cache.is_shared_between_tenants is set, so entries belong to "
            "no tenant; clear everything instead"
        )


def _measure(tier: MemoryTier | SimilarityTier) -> TierStats:
    return TierStats(num_entries=len(tier), num_bytes=tier.num_bytes, num_evicted=tier.num_evicted)
