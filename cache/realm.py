"""One realm of the similarity tier: places of one tenant, model and template, and where its neighbours are found.

Vectors are always kept exactly. A realm that has grown is also indexed by ScaNN: what changes while the index is built
is noted and done again on it before it takes over. Once it has changed as much as it was large, it is built anew. An
index that fails is dropped and logged, and the exact vectors answer until the next one is there. One that cannot be
built is not tried again before much has changed.

Invariants, under the realm's lock: entries, digests, exact vectors and index have the same ids; entries are in the
order in which they came.
"""

import itertools
import logging
import sys
import threading
from collections import OrderedDict

import numpy as np

from cache.neighbours import FEWEST_FOR_SCANN, ExactNeighbours, ScannNeighbours, has_scann
from cache.snapshot import Entry, Snapshot

logger = logging.getLogger(__name__)

_ENTRY_BYTES = 640
"""What an entry takes beside its texts and its vector."""


class Realm:
    """Places of one tenant. May be used from any thread."""

    def __init__(self, tenant: str, dimension: int) -> None:
        """Start empty."""
        self.tenant = tenant
        self._lock = threading.Lock()
        self._serial = itertools.count()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._ids: dict[bytes, int] = {}
        self._exact = ExactNeighbours(dimension)
        self._index: ScannNeighbours | None = None
        self._is_build_claimed = False
        self._build_due = 0
        """At how many changes the next index is due."""
        self._noted: list[tuple[int, np.ndarray | None]] | None = None
        """What changed since an index began to be built: ids with their vectors, None for a deletion."""
        self._num_text_chars = 0
        self.num_changes = 0
        """Insertions and deletions so far: tells whether a snapshot is outdated."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes, without ScaNN's own."""
        return self._exact.num_bytes + self._num_text_chars + _ENTRY_BYTES * len(self._entries)

    @property
    def is_indexed(self) -> bool:
        """Tell whether ScaNN answers."""
        return self._index is not None

    def insert(self, entry: Entry, vector: np.ndarray) -> None:
        """Remember a place, instead of what was remembered for the same digest."""
        with self._lock:
            self._insert(entry, vector)

    def discard(self, digest: bytes) -> int:
        """Forget a place; return how many were forgotten, 0 or 1."""
        with self._lock:
            if digest not in self._ids:
                return 0
            self._delete(self._ids[digest])
            return 1

    def discard_oldest(self) -> int:
        """Forget the place that came first; return how many were forgotten, 0 or 1."""
        with self._lock:
            if not self._entries:
                return 0
            self._delete(next(iter(self._entries)))
            return 1

    def nearest(self, vector: np.ndarray, count: int) -> list[tuple[Entry, float]]:
        """Return the nearest places and their scores, best first."""
        with self._lock:
            found = (self._index or self._exact).search(vector, count)
            return [(self._entries[name], score) for name, score in found]

    def claim_build(self) -> bool:
        """Tell whether an index should be built now; who is told so has to call `build_index`."""
        with self._lock:
            if self._is_build_claimed or self.num_changes < self._build_due or len(self) < FEWEST_FOR_SCANN:
                return False
            if not has_scann():
                self._build_due = sys.maxsize
                return False
            self._is_build_claimed = True
            return True

    def build_index(self) -> None:
        """Learn a new index from what is here; takes seconds, during which the realm is used as before."""
        with self._lock:
            names, matrix = self._exact.names, self._exact.matrix.copy()
            self._noted = []
        built = None
        try:
            if len(names) >= FEWEST_FOR_SCANN:
                built = ScannNeighbours(names, matrix)
        finally:
            with self._lock:
                noted, self._noted, self._is_build_claimed = self._noted, None, False
                self._build_due = self.num_changes + max(FEWEST_FOR_SCANN, len(names) if built is not None else 0)
                if built is not None:
                    self._index = built
                    for name, vector in noted:
                        self._change_index(name, vector)

    def take_snapshot(self, embedder_name: str) -> Snapshot:
        """Return a copy of everything here."""
        with self._lock:
            rows = {name: row for row, name in enumerate(self._exact.names)}
            order = np.array([rows[name] for name in self._entries], np.intp)
            return Snapshot(
                embedder=embedder_name,
                tenant=self.tenant,
                entries=list(self._entries.values()),
                vectors=self._exact.matrix[order],
            )

    def restore(self, snapshot: Snapshot) -> None:
        """Take in what a snapshot holds, as older than what is here."""
        with self._lock:
            newer = [(entry, self._exact.vector_of(name).copy()) for name, entry in self._entries.items()]
            for name in list(self._entries):
                self._delete(name)
            for entry, vector in zip(snapshot.entries, snapshot.vectors, strict=True):
                self._insert(entry, vector)
            for entry, vector in newer:
                self._insert(entry, vector)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        with self._lock:
            ids = set(self._entries)
            assert {entry.digest: name for name, entry in self._entries.items()} == self._ids, "digests are mixed up"
            assert set(self._exact.names) == ids, "vectors and entries have different ids"
            self._exact.check_integrity()
            chars = sum(len(entry.head) + len(entry.text) for entry in self._entries.values())
            assert chars == self._num_text_chars, f"{self._num_text_chars} characters are counted, there are {chars}"
            if self._index is not None:
                self._index.check_integrity()
                assert len(self._index) == len(ids), "index and entries have different ids"

    def _insert(self, entry: Entry, vector: np.ndarray) -> None:
        if entry.digest in self._ids:
            self._delete(self._ids[entry.digest])
        name = next(self._serial)
        self._exact.insert(name, vector)
        self._entries[name] = entry
        self._ids[entry.digest] = name
        self._num_text_chars += len(entry.head) + len(entry.text)
        self._note_change(name, vector)

    def _delete(self, name: int) -> None:
        entry = self._entries.pop(name)
        del self._ids[entry.digest]
        self._exact.delete(name)
        self._num_text_chars -= len(entry.head) + len(entry.text)
        self._note_change(name, None)

    def _note_change(self, name: int, vector: np.ndarray | None) -> None:
        self.num_changes += 1
        if self._noted is not None:
            self._noted.append((name, None if vector is None else vector.copy()))
        self._change_index(name, vector)

    def _change_index(self, name: int, vector: np.ndarray | None) -> None:
        if self._index is None:
            return
        try:
            if vector is None:
                self._index.delete(name)
            else:
                self._index.insert(name, vector)
        except Exception:  # ScaNN's own; the exact vectors are whole
            logger.exception("the index of %d places failed and is dropped; it will be built anew", len(self))
            self._index, self._build_due = None, 0
        if len(self) < FEWEST_FOR_SCANN // 2:
            self._index = None  # small again: the exact vectors are as fast
