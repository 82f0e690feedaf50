"""Texts of one tenant that completions are likely to repeat: files, their context, completions that were accepted.

Answers what a suffix tree over the texts answers (the longest match of a sequence's last tokens, and the most frequent
way on from there), from a sorted array instead: every place is filed under a hash of the three tokens that end there,
newest places are scanned until there are enough of them to be merged into the sorted part. A tree would cost a
microsecond or more a token in Python when a text is added; this costs a copy, and a merge of some hundred
microseconds every few thousand tokens.

Knows no tokenizer and no sequences. Not safe for threads: the thread that steps the engine owns it.

Invariants (`check_integrity`): texts do not overlap and are as they were added; everything outside them is an end;
their tokens, and one end for each, are within the budget, and the array is at most twice as long; the sorted part files
exactly the places before `_num_indexed` that a match can use, though some of them may be dead.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from engine.drafts.matching import END, TokenBuffer, find_places, likeliest_continuation, longest_match
from engine.drafts.sources import NO_DRAFT, Draft

LEAST_MATCH = 3
_MAX_FILED = 4096
"""Of more places than this under one hash, only the latest are looked at."""
_UNINDEXED = 4096
"""Places that may be scanned before they are merged, or a sixteenth of those indexed."""
_SIMILAR_TOKENS = 64
"""A new version of a text that differs in no more tokens than this is not stored: the sequence's own prompt has it."""
_PLACE_BITS = 23
_PLACE_MASK = (1 << _PLACE_BITS) - 1
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
_MASK_64 = (1 << 64) - 1
_HASH_SHIFT = 64 - (63 - _PLACE_BITS)
MAX_BUDGET_TOKENS = 1 << (_PLACE_BITS - 2)

Key = str | int


class Corpus:
    """The texts of one tenant, the least recently used one leaving first."""

    def __init__(self, budget_tokens: int) -> None:
        assert 0 < budget_tokens <= MAX_BUDGET_TOKENS, f"budget {budget_tokens}, expected 1 to {MAX_BUDGET_TOKENS}"
        self._budget = budget_tokens
        self._num_unnamed = 0
        self._texts: OrderedDict[Key, tuple[int, int]] = OrderedDict()
        """Where each text stands, start and stop; least recently used first."""
        self._num_live = 0
        """Tokens of the texts, and one end for each."""
        self._clear()

    @property
    def num_tokens(self) -> int:
        """Tokens held, and one for the end of each text."""
        return self._num_live

    def texts(self) -> list[np.ndarray]:
        """Return the texts as they are searched, the latest places last."""
        return [self._buffer.array[start:stop] for start, stop in sorted(self._texts.values())]

    def add(self, tokens: Sequence[int] | np.ndarray, *, key: str | None = None) -> None:
        """Add a text, in place of the one of the same key; without a key, beside everything.

        Negative numbers are ends, which no match crosses. Of a text longer than the budget its last tokens are kept.
        """
        new = np.asarray(tokens, np.int32)[-(self._budget - 1) :] if self._budget > 1 else np.empty(0, np.int32)
        if not len(new):
            return
        if key is not None and key in self._texts:
            if self._is_similar(self._texts[key], new):
                self._texts.move_to_end(key)
                return
            self._remove(key)
        while self._num_live + len(new) + 1 > self._budget:
            self._remove(next(iter(self._texts)))
        if len(self._buffer) + len(new) + 1 > 2 * self._budget:
            self._compact()
        if key is None:
            self._num_unnamed += 1
        self._append(self._num_unnamed if key is None else key, new)
        if self._buffer.stop - self._num_indexed > max(_UNINDEXED, self._num_indexed // 16):
            self._index()

    def propose(self, history: TokenBuffer, limit: int) -> Draft:
        """Return the most frequent continuation of the longest match of at least `LEAST_MATCH` tokens."""
        array, tail = self._buffer.array, history.tail()
        if not self._texts or tail[LEAST_MATCH - 1] < 0:
            return NO_DRAFT
        places = np.concatenate(
            [self._filed(tail), find_places(array, self._num_indexed, self._buffer.stop, int(tail[0]))]
        )
        if not len(places):
            return NO_DRAFT
        length, places = longest_match(array, places, tail)
        if length < LEAST_MATCH:
            return NO_DRAFT
        self._texts.move_to_end(self._keys[bisect_right(self._starts, int(places[-1])) - 1])
        tokens, shares = likeliest_continuation(array, places, limit)
        return Draft(tokens, shares, "corpus", length)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        array, stop = self._buffer.array, self._buffer.stop
        extents = sorted(self._texts.values())
        assert all(a[1] < b[0] for a, b in pairwise(extents)), "texts overlap"
        assert self._num_live == sum(b - a + 1 for a, b in extents) <= self._budget, "the budget is miscounted"
        assert len(self._buffer) <= 2 * self._budget, "the array outgrew twice the budget"
        outside = np.ones(len(array), bool)
        for a, b in extents:
            outside[a:b] = False
        assert (array[outside] < 0).all(), "a token outside every text"
        for key, (start, _) in self._texts.items():
            assert self._keys[self._starts.index(start)] == key, f"text {key} is not found by its places"
        assert self._starts == sorted(self._starts), "starts out of order"
        assert self._num_indexed <= stop, "indexed beyond the end"
        assert (np.diff(self._index_keys) > 0).all(), "the index is out of order"
        filed = self._index_keys & _PLACE_MASK
        alive = filed[array[filed] >= 0]
        expected = _places_to_file(array, 0, self._num_indexed)
        assert np.array_equal(np.sort(alive), expected), "the index misses a place or has one too many"
        assert np.array_equal(_hash(array, alive), self._index_keys[array[filed] >= 0] >> _PLACE_BITS), "misfiled"

    def _clear(self) -> None:
        self._buffer = TokenBuffer()
        self._starts: list[int] = []
        self._keys: list[Key] = []
        """The key of each text that was appended, dead ones too, in the order of `_starts`."""
        self._index_keys = np.empty(0, np.int64)
        """`hash << _PLACE_BITS | place` of the places before `_num_indexed`, ascending."""
        self._num_indexed = 0

    def _append(self, key: Key, tokens: np.ndarray) -> None:
        start = self._buffer.stop
        self._buffer.append(tokens)
        self._texts[key] = (start, self._buffer.stop)
        self._num_live += len(tokens) + 1
        self._buffer.append([END])
        self._starts.append(start)
        self._keys.append(key)

    def _remove(self, key: Key) -> None:
        start, stop = self._texts.pop(key)
        self._buffer.array[start:stop] = END
        self._num_live -= stop - start + 1

    def _compact(self) -> None:
        """Write the texts anew without the gaps, least recently used first."""
        texts = [(key, self._buffer.array[start:stop]) for key, (start, stop) in self._texts.items()]
        self._num_live = 0
        self._clear()
        for key, tokens in texts:
            self._append(key, tokens)
        self._index()

    def _index(self) -> None:
        places = _places_to_file(self._buffer.array, self._num_indexed, self._buffer.stop)
        fresh = np.sort(_hash(self._buffer.array, places) << _PLACE_BITS | places)
        # A stable sort merges two ascending runs in linear time.
        self._index_keys = np.sort(np.concatenate([self._index_keys, fresh]), kind="stable")
        self._num_indexed = self._buffer.stop

    def _filed(self, tail: np.ndarray) -> np.ndarray:
        """Return the places before `_num_indexed` that end in the tail's last tokens, ascending."""
        mixed = 0
        for token, factor in zip(
            tail[:LEAST_MATCH].tolist(), _FACTORS, strict=True
        ):  # as `_hash`, without numpy's start
            mixed ^= token * factor & _MASK_64
        first = mixed >> _HASH_SHIFT << _PLACE_BITS
        low, high = self._index_keys.searchsorted([first, first | _PLACE_MASK]).tolist()
        places: np.ndarray = self._index_keys[max(low, high - _MAX_FILED) : high] & _PLACE_MASK
        alive: np.ndarray = places[self._buffer.array[places] == tail[0]]
        return alive

    def _is_similar(self, extent: tuple[int, int], new: np.ndarray) -> bool:
        old = self._buffer.array[slice(*extent)]
        length = min(len(old), len(new))
        same_start = _first_difference(old[:length], new[:length])
        rest = length - same_start
        same_end = _first_difference(old[len(old) - rest :][::-1], new[len(new) - rest :][::-1])
        return max(len(old), len(new)) - same_start - same_end <= _SIMILAR_TOKENS


class Corpora:
    """One corpus a tenant; the tenant whose corpus was used longest ago leaves when there are too many tokens."""

    source = "corpus"

    def __init__(
        self, *, budget_tokens: int = 1 << 20, tenant_tokens: int = 1 << 17, markers: Iterable[int] = ()
    ) -> None:
        """Hold at most `budget_tokens`, of one tenant at most `tenant_tokens`; 0 holds nothing.

        A token of the budget takes at most 32 bytes. `markers` are ids that no draft may contain or cross.
        """
        self._budget, self._tenant_tokens = budget_tokens, min(tenant_tokens, budget_tokens, MAX_BUDGET_TOKENS)
        self._markers = np.array(sorted(markers), np.int32)
        self._tenants: OrderedDict[str, Corpus] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        return sum(corpus.num_tokens for corpus in self._tenants.values())

    def add(self, tenant: str, tokens: Sequence[int] | np.ndarray, *, key: str | None = None) -> None:
        """Add a text to a tenant's corpus, markers and all; `Corpus.add` says what a key is."""
        if not self._tenant_tokens:
            return
        corpus = self._tenants.setdefault(tenant, Corpus(self._tenant_tokens))
        self._tenants.move_to_end(tenant)
        tokens = np.asarray(tokens, np.int32)
        corpus.add(np.where(np.isin(tokens, self._markers), END, tokens), key=key)
        while self.num_tokens > self._budget:
            self._tenants.popitem(last=False)

    def of(self, tenant: str) -> Corpus | None:
        """Return a tenant's corpus, None when nothing was added."""
        if tenant in self._tenants:
            self._tenants.move_to_end(tenant)
        return self._tenants.get(tenant)

    def check_integrity(self) -> None:
        """Assert the invariants of every corpus, and the budget."""
        assert self.num_tokens <= self._budget, f"{self.num_tokens} tokens, budget {self._budget}"
        for corpus in self._tenants.values():
            corpus.check_integrity()


class CorpusLookup:
    """The drafter of one sequence over its tenant's corpus, whatever that is by then."""

    def __init__(self, corpora: Corpora, tenant: str) -> None:
        self._corpora, self._tenant = corpora, tenant

    def propose(self, history: TokenBuffer, limit: int) -> Draft:
        corpus = self._corpora.of(self._tenant)
        return NO_DRAFT if corpus is None else corpus.propose(history, limit)


def _places_to_file(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the places in `[start, stop)` that end `LEAST_MATCH` tokens and are followed by one, ascending, int64."""
    around = array[start - LEAST_MATCH + 1 : stop + 1] if start else array[: stop + 1]
    is_token = around >= 0
    size = len(around) - LEAST_MATCH
    fits = np.logical_and.reduce([is_token[offset : offset + size] for offset in range(LEAST_MATCH + 1)])
    return np.flatnonzero(fits) + max(start, LEAST_MATCH - 1)


def _hash(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return a hash of the `LEAST_MATCH` tokens that end at each place, int64, 0 to 2 ** 40 - 1."""
    mixed = np.zeros(len(places), np.uint64)
    for offset, factor in enumerate(_FACTORS):
        mixed ^= array[places - offset].astype(np.uint64) * np.uint64(factor)
    return (mixed >> np.uint64(_HASH_SHIFT)).astype(np.int64)


def _first_difference(one: np.ndarray, other: np.ndarray) -> int:
    """Return the index of the first difference of two arrays of one length; the length if there is none."""
    differs = np.flatnonzero(one != other)
    return int(differs[0]) if len(differs) else len(one)
