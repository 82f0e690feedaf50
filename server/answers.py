"""Answers that were given before: the completion cache, as the completer sees it.

Translates the engine's requests into the cache's keys, and says which requests may be answered from it: those whose
answer is the same each time they are asked. Knows no transport and no session. `find` and `draft` may wait for a file
or a server and belong on a thread; `keep` does not.
"""

import hashlib
from collections.abc import Sequence

from cache import key as cache_key
from cache.completion_cache import CompletionCache
from cache.key import Key
from engine.types import CompletionEngine, FinishReason, Request
from server.generation import Answer
from server.types import Source, TrimMode

LAYOUT = "prompt 2"
"""Changes whenever windows, cuts or the layout of prompts change, so that answers made before are not found."""


class Answers:
    """The answers kept for one server; without a cache it has none and keeps none."""

    def __init__(self, cache: CompletionCache | None, *, least_chars: int, trim: TrimMode = "off") -> None:
        """`least_chars`: an answer cut off by its limit is not served when fewer characters of it are left.

        `trim`: where answers end, which is part of what they are.
        """
        self._cache = cache
        self._template = f"{LAYOUT}, trim {trim}"
        self._least_chars = least_chars

    @property
    def health(self) -> str:
        """ "" while all is well, else what is wrong."""
        return "" if self._cache is None else self._cache.health

    def key(self, request: Request, engine: CompletionEngine, *, has_seed: bool) -> Key | None:
        """Return the key of a request; None if its answer is not to be kept: fresh ones, and those drawn at random.

        `has_seed`: whether the client chose the seed.
        """
        sampling = request.sampling
        context = [text for chunk in request.context for text in (chunk.path, chunk.text)]
        if self._cache is None or request.is_fresh or (sampling.temperature > 0 and not has_seed):
            return None
        is_greedy = sampling.temperature == 0
        return Key(
            tenant=request.tenant,
            model=engine.identity,
            template=self._template if request.sparse == "auto" else f"{self._template}, sparse {request.sparse}",
            before=request.before,
            after=request.after,
            cut=request.cut,
            context_hash=_hash([request.path, *context]),
            temperature=sampling.temperature,
            top_k=0 if is_greedy else sampling.top_k,
            top_p=1.0 if is_greedy else sampling.top_p,
            seed=0 if is_greedy else sampling.seed,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
        )

    def find(self, key: Key) -> Answer | None:
        """Return an answer that may be served as it is."""
        assert self._cache is not None, "a key without a cache"
        hit = self._cache.lookup(key)
        if hit is None:
            return None
        reason: FinishReason = "stop" if hit.answer.finish_reason == "stop" else "length"
        is_rest = hit.source == "type-through"
        if is_rest and reason == "length" and len(hit.answer.text) < self._least_chars:
            return None
        return Answer(hit.answer.text, reason, None if is_rest else hit.answer.logit_gap, hit.source, hit.num_typed)

    def draft(self, key: Key) -> str:
        """Return text that may come at a place like this one; the engine verifies it. "" if there is none."""
        assert self._cache is not None, "a key without a cache"
        draft = self._cache.draft_for(key)
        return "" if draft is None else draft.text

    def keep(self, key: Key, answer: Answer) -> None:
        """Keep an answer of the engine's."""
        assert self._cache is not None, "a key without a cache"
        self._cache.store(
            key, cache_key.Answer(text=answer.text, finish_reason=answer.reason, logit_gap=answer.logit_gap)
        )

    def note_accept(self, source: Source) -> None:
        """Count an answer that a user took, if it is one of the cache's."""
        if self._cache is not None and source in ("memory", "type-through", "shared"):
            self._cache.note_accept(source)

    def close(self) -> None:
        """Write what waits to be written; blocks for seconds at most."""
        if self._cache is not None:
            self._cache.close()


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
