"""Tier 3: answers that outlive the process and that other processes share, in a `Store`.

A store may be slow, full or gone. Whatever it does, nothing here raises: a lookup then finds nothing, a write is lost
and counted, and `health` says why. After a failure the store is left alone for a while, twice as long after each
further one (a circuit breaker); then the next call tries it again, alone, and if that works all is as before.

What comes back is checked (`record.py`): a record that is not what was written is deleted and counted, never served.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from cache.errors import SharedStoreError
from cache.key import Answer, Key
from cache.record import decode_record, encode_record
from cache.store import Store, Stored

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class SharedTier:
    """Keeps answers in a store. May be used from any thread; every call may wait for the store."""

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use a store; it need not be reachable yet."""
        self.store = store
        self._ttl_s = ttl_s
        self._now = now
        self._breaker = Breaker(monotonic)
        self.num_failures = 0
        """Calls that the store failed."""
        self.num_lost_writes = 0
        """Answers that were not kept."""
        self.num_refused_records = 0
        """Records that were not what was written."""

    @property
    def health(self) -> str:
        """ "" while all is well, else what is wrong."""
        return self._breaker.reason

    def lookup(self, key: Key) -> Answer | None:
        """Return the answer that any process stored for this very key."""
        record = self._try(lambda: self.store.get(key.tenant, key.digest))
        if record is None:
            return None
        answer = decode_record(key.digest, record)
        if answer is None:
            self.num_refused_records += 1
            logger.warning("%s: a record is not what was written; it is deleted", self.store.place)
            self._try(lambda: self.store.delete(key.tenant, key.digest))
        elif self._now() - answer.created_s <= self._ttl_s:
            return answer
        return None

    def put(self, batch: Sequence[tuple[Key, Answer]]) -> bool:
        """Keep answers; tell whether the store has them."""
        stored = list[Stored]()
        for key, answer in batch:
            try:
                record = encode_record(key.digest, answer)
            except UnicodeEncodeError:  # no answer of a model, and nothing that UTF-8 could bring back
                self.num_lost_writes += 1
            else:
                stored.append(Stored(key.tenant, key.digest, record, answer.created_s))

        def keep() -> bool:
            self.store.put(stored)
            return True

        is_kept = self._try(keep) is not None
        if not is_kept:
            self.num_lost_writes += len(stored)
        return is_kept

    def clear(self, tenant: str | None = None) -> int:
        """Forget a tenant's answers, or all; return how many. Raises SharedStoreError: who clears wants to know."""
        return self.store.clear(tenant)

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()

    def _try(self, call: Callable[[], _Result]) -> _Result | None:
        """Call the store unless it is left alone just now; None when that failed."""
        if not self._breaker.may_try():
            return None
        try:
            result = call()
        except SharedStoreError as error:
            self.num_failures += 1
            if self._breaker.fail(str(error)):
                logger.warning("%s", error)
            return None
        if self._breaker.succeed():
            logger.info("%s is back", self.store.place)
        return result


class Breaker:
    """Says when something that failed may be tried again: after pauses that double, and by one caller at a time."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._pause_s = 0.0
        self._next_try_s = 0.0
        self.reason = ""
        """Why it is open; "" while it is closed."""

    def may_try(self) -> bool:
        """Tell whether to call; after a pause one caller is told so, the others wait for what becomes of it."""
        with self._lock:
            if not self.reason:
                return True
            if self._monotonic() < self._next_try_s:
                return False
            self._next_try_s = self._monotonic() + LONGEST_PAUSE_S
            return True

    def fail(self, reason: str) -> bool:
        """Note a failure; tell whether it is the first one."""
        with self._lock:
            is_first = not self.reason
            self.reason = reason
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s) if self._pause_s else FIRST_PAUSE_S
            self._next_try_s = self._monotonic() + self._pause_s
            return is_first

    def succeed(self) -> bool:
        """Note that it works; tell whether it did not before."""
        with self._lock:
            was_open = bool(self.reason)
            self.reason, self._pause_s = "", 0.0
            return was_open
