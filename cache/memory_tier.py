"""Tier 1: answers in this process, found for the key itself or for one that was typed a little less of.

Type-through: when what was typed since an earlier key is how its answer begins, the rest of that answer is the answer,
because the model would go on as it has begun. That holds only for greedy sampling, and only while nothing else changed:
same tenant, model, template, context, cut, text above the cut, text after the cursor, limits. All of that is
`Key.place`, so an earlier key is one with the same place and a shorter line. Of several, the one that was typed least
since wins: the model said it with the most of the text before it.

Invariants, under one lock: the entries reached by place are exactly those in the order of use; `num_bytes` is their
sum and at most `max_bytes`; no place is empty.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from cache.key import Answer, Hit, Key

LOOK_BEHIND_CHARS = 128
"""Most characters typed since an earlier key; as llama.cpp's editor plugins have it."""
_ENTRY_BYTES = 640
"""What an entry takes beside its texts: objects, its share of three dictionaries."""


class _Entry(msgspec.Struct, frozen=True):
    tenant: str
    answer: Answer
    num_bytes: int


class MemoryTier:
    """Keeps the most recently used answers within a number of bytes. May be used from any thread."""

    def __init__(self, *, max_bytes: int, ttl_s: float, now: Callable[[], float] = time.time) -> None:
        """Start empty; `now` gives seconds since 1970, as `Answer.created_s` counts them."""
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._now = now
        self._lock = threading.Lock()
        self._places: dict[bytes, dict[str, _Entry]] = {}
        self._order: OrderedDict[tuple[bytes, str], int] = OrderedDict()
        self._num_bytes = 0
        self.num_evicted = 0
        """Entries that had to make room or were too old."""

    @property
    def num_bytes(self) -> int:
        """About how much memory the entries take."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._order)

    def lookup(self, key: Key) -> Hit | None:
        """Return the answer for a key, or the rest of one that was typed into."""
        place, line = key.place, key.line
        with self._lock:
            if place not in self._places:
                return None
            if (answer := self._fresh(place, line)) is not None:
                return Hit(answer=answer, source="memory")
            return self._typed_through(place, line) if key.is_greedy else None

    def store(self, key: Key, answer: Answer) -> None:
        """Keep an answer, in place of an earlier one for the same key."""
        with self._lock:
            self._put(key.place, key.line, _Entry(key.tenant, answer, _size_of(key.line, answer)))

    def extend(self, key: Key, accepted: str) -> None:
        """Keep the rest of a key's answer for the key as it is once `accepted` was inserted, however long that is.

        Nothing happens when no answer begins so, when nothing is left of it, or when sampling is not greedy.
        """
        with self._lock:
            answer = self._fresh(key.place, key.line)
            if answer is None and key.is_greedy and (hit := self._typed_through(key.place, key.line)) is not None:
                answer = hit.answer
            if answer is None or not key.is_greedy or (rest := rest_of(answer, accepted)) is None:
                return
            line = key.line + accepted
            if self._fresh(key.place, line) is None:
                self._put(key.place, line, _Entry(key.tenant, rest, _size_of(line, rest)))

    def clear(self, tenant: str | None = None) -> int:
        """Forget a tenant's entries, or all; return how many."""
        with self._lock:
            doomed = [
                (place, line) for place, line in self._order if tenant in (None, self._places[place][line].tenant)
            ]
            for place, line in doomed:
                self._drop(place, line)
            return len(doomed)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        with self._lock:
            reached = {(place, line): entry for place, lines in self._places.items() for line, entry in lines.items()}
            assert reached.keys() == self._order.keys(), "the order of use and the places hold different entries"
            assert all(self._places.values()), "a place is empty"
            total = sum(entry.num_bytes for entry in reached.values())
            assert total == self._num_bytes, f"{self._num_bytes} bytes are counted, the entries have {total}"
            assert total <= self._max_bytes, f"{total} bytes are held, {self._max_bytes} allowed"
            for (_, line), entry in reached.items():
                assert entry.num_bytes == _size_of(line, entry.answer), f"the size of {line!r} changed"

    def _fresh(self, place: bytes, line: str) -> Answer | None:
        """Return the answer stored under exactly this, unless it is too old, and mark it used."""
        entry = self._places.get(place, {}).get(line)
        if entry is None:
            return None
        if self._now() - entry.answer.created_s > self._ttl_s:
            self._drop(place, line)
            self.num_evicted += 1
            return None
        self._order.move_to_end((place, line))
        return entry.answer

    def _typed_through(self, place: bytes, line: str) -> Hit | None:
        lines = self._places.get(place, {})
        for num_typed in range(1, min(LOOK_BEHIND_CHARS, len(line)) + 1):
            earlier = line[:-num_typed]
            if earlier not in lines or (rest := rest_of(lines[earlier].answer, line[-num_typed:])) is None:
                continue
            if self._fresh(place, earlier) is not None:
                return Hit(answer=rest, source="type-through", num_typed=num_typed)
            lines = self._places.get(place, {})
        return None

    def _put(self, place: bytes, line: str, entry: _Entry) -> None:
        if line in self._places.get(place, {}):
            self._drop(place, line)
        if entry.num_bytes > self._max_bytes:
            return
        while self._num_bytes + entry.num_bytes > self._max_bytes:
            self._drop(*next(iter(self._order)))
            self.num_evicted += 1
        self._places.setdefault(place, {})[line] = entry
        self._order[place, line] = entry.num_bytes
        self._num_bytes += entry.num_bytes

    def _drop(self, place: bytes, line: str) -> None:
        lines = self._places[place]
        self._num_bytes -= lines.pop(line).num_bytes
        if not lines:
            del self._places[place]
        del self._order[place, line]


def rest_of(answer: Answer, typed: str) -> Answer | None:
    """Return what is left of an answer after `typed`; None when it begins differently or nothing is left.

    What was written beyond the text that was to be shown counts: with it alone left, `text` is empty, and the reason is
    "length", since nobody knows whether the model would have stopped there.
    """
    if not typed:
        return answer
    num_left = len(answer.text) - len(typed)
    if num_left > 0:
        return msgspec.structs.replace(answer, text=answer.text[-num_left:]) if answer.text.startswith(typed) else None
    beyond = answer.beyond[-num_left:]
    if not beyond or not (answer.text + answer.beyond).startswith(typed):
        return None
    return msgspec.structs.replace(answer, text="", beyond=beyond, finish_reason="length")


def _size_of(line: str, answer: Answer) -> int:
    texts = (line, answer.text, answer.beyond, *answer.made_from)
    return _ENTRY_BYTES + sum(len(text) if text.isascii() else 4 * len(text) for text in texts)
