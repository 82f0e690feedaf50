"""The cache that llama.cpp's editor plugins keep on the user's side, put in front of any dialect.

As llama.vim and llama.vscode do it: 250 keys, the least recently used one goes; a key is what the plugin would send of
the file; a whole answer is stored under up to four keys, with zero to three of the first lines left out, so that a
window that has moved down by so many lines still finds it; and where there is no answer at the cursor, stored answers
up to 128 characters back serve whose text begins with what was typed since, the longest remainder first. An answer from
here sends nothing to the server. Not done: the plugins' second request, as if the shown answer had been accepted.
"""

import time
from collections import OrderedDict
from typing import NamedTuple, Self

import msgspec

from loadtest.dialects import Dialect, Query, Reply, TextSink, ignore_text
from loadtest.llama_infill import place_of

MAX_KEYS = 250
MAX_TYPED_CHARS = 128
MAX_LEFT_OUT_LINES = 3
SOURCE = "client cache"


class _Key(NamedTuple):
    before: str
    after: str


class _Answer(NamedTuple):
    text: str
    is_cut_short: bool


class PluginCache:
    """A `Dialect` that asks another one only for what it does not know."""

    def __init__(self, dialect: Dialect) -> None:
        """Put a cache in front of a dialect; the cache is all sessions' own, as one plugin in each editor has it."""
        self._dialect = dialect
        self._answers: dict[str, OrderedDict[_Key, _Answer]] = {}

    async def __aenter__(self) -> Self:
        await self._dialect.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._dialect.__aexit__(*_)

    async def is_alive(self) -> bool:
        """Tell it of the dialect behind."""
        return await self._dialect.is_alive()

    async def complete(self, query: Query, *, deadline_s: float, on_text: TextSink = ignore_text) -> Reply:
        """Answer from the cache, else from the dialect."""
        if query.is_fresh:
            return await self._dialect.complete(query, deadline_s=deadline_s, on_text=on_text)
        began_s = time.perf_counter()
        place = place_of(query)
        key = _Key(place.above + place.head, place.after)
        answers = self._answers.setdefault(query.session_id, OrderedDict())
        if (answer := _find(answers, key)) is not None:
            if answer.text:
                on_text(answer.text)
            total_s = time.perf_counter() - began_s
            return Reply(
                text=answer.text,
                source=SOURCE,
                is_from_model=False,
                is_cut_short=answer.is_cut_short,
                first_text_s=total_s if answer.text else None,
                total_s=total_s,
            )
        looked_s = time.perf_counter() - began_s
        reply = await self._dialect.complete(query, deadline_s=deadline_s, on_text=on_text)
        if reply.error is None:
            _store(answers, key, _Answer(reply.text, reply.is_cut_short))
        first_text_s = None if reply.first_text_s is None else reply.first_text_s + looked_s
        return msgspec.structs.replace(reply, first_text_s=first_text_s, total_s=reply.total_s + looked_s)


def _find(answers: OrderedDict[_Key, _Answer], key: _Key) -> _Answer | None:
    """Return the answer stored for the key itself, else the longest remainder of one a few typed characters back."""
    if (answer := answers.get(key)) is not None:
        answers.move_to_end(key)
        return answer
    best = None
    most_left, least_typed = 0, 0
    for earlier, answer in answers.items():
        num_typed = len(key.before) - len(earlier.before)
        num_left = len(answer.text) - num_typed
        if (
            0 < num_typed <= MAX_TYPED_CHARS
            and num_left > 0
            and (num_left, -num_typed) > (most_left, -least_typed)
            and key.before.endswith(answer.text[:num_typed])
            and key.before.startswith(earlier.before)
            and key.after == earlier.after
        ):
            best, most_left, least_typed = earlier, num_left, num_typed
    if best is None:
        return None
    answers.move_to_end(best)
    return _Answer(answers[best].text[-most_left:], answers[best].is_cut_short)


def _store(answers: OrderedDict[_Key, _Answer], key: _Key, answer: _Answer) -> None:
    before = key.before
    for _ in range(MAX_LEFT_OUT_LINES + 1):
        answers[_Key(before, key.after)] = answer
        answers.move_to_end(_Key(before, key.after))
        _, newline, rest = before.partition("\n")
        if not newline:
            break
        before = rest
    while len(answers) > MAX_KEYS:
        answers.popitem(last=False)
