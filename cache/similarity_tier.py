"""Tier 2: what followed at places like this one, as drafts for the model to verify. Never an answer.

The text left of the cursor becomes a vector (`embedder.py`); its nearest neighbours (`neighbours.py`) are places at
which something was completed before. What followed there is shifted so that it fits what is already typed here.

Every *realm* (tenant, model and template: `Key.realm`) has vectors, index and lock of its own (`realm.py`). So a search
can neither find another tenant's entry nor take longer because of one. When all realms together hold too much, the
oldest entry of the largest one goes: a tenant that floods the tier displaces itself.

What takes long runs on a worker: reading a realm's snapshot when it is first asked for, building indexes, writing
snapshots. A snapshot that is damaged or another version's is logged and replaced; the realm starts empty.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from cache.embedder import Embedder
from cache.errors import SnapshotError
from cache.key import Answer, Draft, Key
from cache.neighbours import check_vector
from cache.realm import Realm
from cache.snapshot import Entry, read_snapshot, snapshot_path, snapshots_of, write_snapshot
from cache.worker import Worker

logger = logging.getLogger(__name__)

HEAD_CHARS = 96
"""Most characters left of a place that are kept with what followed."""
TEXT_CHARS = 1024
"""Most characters kept of what followed."""
_CANDIDATES = 4
_OVERLAPS = (32, 16, 8, 4)


class SimilarityTier:
    """Finds drafts. May be used from any thread."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        max_entries: int,
        ttl_s: float,
        min_score: float,
        worker: Worker,
        directory: Path | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Start empty; `directory` is where snapshots are, None: nowhere."""
        self._embedder = embedder
        self._max_entries = max_entries
        self._ttl_s = ttl_s
        self._min_score = min_score
        self._worker = worker
        self._directory = directory
        self._now = now
        self._lock = threading.Lock()
        self._realms: dict[bytes, Realm] = {}
        self._saved: dict[bytes, int] = {}
        self.num_evicted = 0
        """Entries that had to make room or were too old."""
        self.num_refused_snapshots = 0
        self.num_failed_saves = 0

    @property
    def num_bytes(self) -> int:
        """About how much memory the entries take, without ScaNN's own."""
        return sum(realm.num_bytes for realm in list(self._realms.values()))

    def __len__(self) -> int:
        return sum(map(len, list(self._realms.values())))

    def draft_for(self, key: Key) -> Draft | None:
        """Return what followed at the nearest place, if one is near enough."""
        realm = self._realm(key)
        if not len(realm):
            return None
        for entry, score in realm.nearest(self._embed(key), _CANDIDATES):
            if score < self._min_score:
                break
            if self._now() - entry.created_s > self._ttl_s:
                self.num_evicted += realm.discard(entry.digest)
            elif text := fit(entry.head, entry.text, key.before[-HEAD_CHARS:]):
                return Draft(text=text, score=score)
        return None

    def store(self, key: Key, answer: Answer) -> None:
        """Remember what followed at a place."""
        text = _writable((answer.text + answer.beyond)[:TEXT_CHARS])
        if not text.strip():
            return
        entry = Entry(
            digest=key.digest, head=_writable(key.before[-HEAD_CHARS:]), text=text, created_s=answer.created_s
        )
        realm = self._realm(key)
        realm.insert(entry, self._embed(key))
        with self._lock:
            while len(self) > self._max_entries:
                self.num_evicted += max(self._realms.values(), key=len).discard_oldest()
        if realm.claim_build():
            self._worker.submit(realm.build_index)

    def clear(self, tenant: str | None = None) -> int:
        """Forget a tenant's entries and snapshots, or all; return how many entries were in memory."""
        with self._lock:
            doomed = {name: realm for name, realm in self._realms.items() if tenant in (None, realm.tenant)}
            for name in doomed:
                del self._realms[name]
                self._saved.pop(name, None)
            if self._directory is not None:
                for path in snapshots_of(self._directory, tenant):
                    path.unlink(missing_ok=True)
            return sum(map(len, doomed.values()))

    def save(self) -> None:
        """Write the snapshots of realms that have changed; a failure is logged and counted."""
        if self._directory is None:
            return
        for path in snapshots_of(self._directory, None):
            with suppress(FileNotFoundError):  # another process removed it
                if self._now() - path.stat().st_mtime > self._ttl_s:
                    path.unlink()
        for name, realm in list(self._realms.items()):
            num_changes = realm.num_changes
            if self._saved.get(name) == num_changes:
                continue
            path = snapshot_path(self._directory, tenant=realm.tenant, realm=name)
            try:
                aside = write_snapshot(path, realm.take_snapshot(self._embedder.name))
                with self._lock:
                    if self._realms.get(name) is realm:
                        aside.replace(path)
                        self._saved[name] = num_changes
                    else:
                        aside.unlink(missing_ok=True)  # cleared meanwhile
            except OSError as error:
                self.num_failed_saves += 1
                logger.warning("cannot write the snapshot %s: %s; the tier goes on without", path, error.strerror)

    def check_integrity(self) -> None:
        """Assert the invariants of every realm, and the bound on all of them."""
        for realm in list(self._realms.values()):
            realm.check_integrity()
        assert len(self) <= self._max_entries, f"{len(self)} entries are held, {self._max_entries} allowed"

    def _embed(self, key: Key) -> np.ndarray:
        return check_vector(self._embedder.embed(key.before), self._embedder.dimension)

    def _realm(self, key: Key) -> Realm:
        """Return a key's realm; a new one is filled from its snapshot in the background."""
        realm = self._realms.get(key.realm)
        if realm is None:
            with self._lock:
                realm = self._realms.get(key.realm)
                if realm is None:
                    realm = self._realms[key.realm] = Realm(key.tenant, self._embedder.dimension)
                    name, new = key.realm, realm
                    self._worker.submit(lambda: self._restore(name, new))
        return realm

    def _restore(self, name: bytes, realm: Realm) -> None:
        if self._directory is None:
            return
        path = snapshot_path(self._directory, tenant=realm.tenant, realm=name)
        try:
            snapshot = read_snapshot(
                path, tenant=realm.tenant, embedder=self._embedder.name, dimension=self._embedder.dimension
            )
        except FileNotFoundError:
            return
        except SnapshotError as error:
            self.num_refused_snapshots += 1
            logger.warning("%s", error)
            return
        with self._lock:  # what is cleared while it was read stays cleared
            if self._realms.get(name) is not realm:
                return
            realm.restore(snapshot)
            while len(self) > self._max_entries:
                self.num_evicted += max(self._realms.values(), key=len).discard_oldest()
        if realm.claim_build():
            realm.build_index()


def fit(head: str, text: str, before: str) -> str:
    """Return of what followed somewhere the part that belongs behind `before`.

    The cursor there may have stood some characters before or after the one here. Where the end of `before` occurs in
    `head + text` decides: the longest end first, and of several places the first one that is not before the cursor's.
    """
    whole = head + text
    for length in _OVERLAPS:
        end = before[-length:]
        if len(end) < length:
            continue
        at = whole.find(end, max(0, len(head) - length))
        if at < 0:
            at = whole.rfind(end, 0, len(head))
        if at >= 0:
            return whole[at + length :]
    return text


def _writable(text: str) -> str:
    """Return a text without what UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
