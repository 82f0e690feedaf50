"""A suggestion: what was asked at a place and what the engine writes there; and whether it answers a later request.

While somebody types what was suggested, each new request's `before` is the old one and a beginning of the suggestion,
and the rest of the suggestion is its answer. That holds only where everything else that shapes an answer is the same:
the text after the cursor, path, language, context and sampling; the limit of tokens may be larger, since the rest of an
answer never has more tokens than the whole. What is sampled with a seed is never taken over: a seed promises the text
of exactly one request.

Knows no session and no transport.
"""

import sys
from dataclasses import dataclass

from engine.types import SamplingParams
from server.generation import Generation
from server.predictor import Kind
from server.types import CompletionRequest

_ANSWER_BYTES = 4096
"""What is reckoned for the text of an answer, and for all that is not text."""


@dataclass(kw_only=True)
class Ahead:
    """That a suggestion was made before anybody asked for it, and what became of it."""

    kind: Kind
    num_tokens: int = 0
    """Tokens that the model wrote for it, known when it has ended."""
    is_used: bool = False
    """Whether somebody was served any of it."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A request and its generation, running or ended."""

    request: CompletionRequest
    sampling: SamplingParams
    """The request's, with defaults filled in."""
    generation: Generation
    ahead: Ahead | None = None
    """What it was made ahead for; None when it was asked for."""

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        texts = (self.request.before, self.request.after, *(chunk.text for chunk in self.request.context))
        return _ANSWER_BYTES + sum(map(sys.getsizeof, texts))

    def num_typed_at(self, request: CompletionRequest, sampling: SamplingParams) -> int | None:
        """Return how many characters of it stand before the request's cursor; None when it is no answer to that."""
        if not (_is_repeatable(self.request, self.sampling) and _is_repeatable(request, sampling)):
            return None
        if not (_is_like(self.request, request) and _is_same_way(self.sampling, sampling)):
            return None
        finish = self.generation.finish
        is_complete = finish is not None and finish.reason == "stop"
        if not is_complete and sampling.max_tokens != self.sampling.max_tokens:
            return None  # asked for more tokens, the model would go on
        if not request.before.startswith(self.request.before):
            return None
        typed = request.before[len(self.request.before) :]
        return len(typed) if self.generation.text.startswith(typed) else None

    def is_taken_at(self, request: CompletionRequest) -> bool:
        """Tell whether the cursor stands right behind all of it: it was accepted, or typed to its end."""
        if self.generation.finish is None or (self.ahead is not None and not self.ahead.is_used):
            return False
        before, text = self.request.before, self.generation.text
        is_there = len(request.before) == len(before) + len(text) and request.before.endswith(text)
        return bool(text) and is_there and request.before.startswith(before) and request.after == self.request.after

    def is_reachable_from(self, request: CompletionRequest) -> bool:
        """Tell whether typing on may lead to where it is an answer."""
        return self.request.after == request.after and self.request.before.startswith(request.before)

    def draft_at(self, request: CompletionRequest) -> str:
        """Return what of its text may still come at a request that it does not answer; the engine verifies it."""
        if not request.before.startswith(self.request.before):
            return ""
        text = self.generation.text + self.generation.beyond
        return text[len(request.before) - len(self.request.before) :]


def _is_repeatable(request: CompletionRequest, sampling: SamplingParams) -> bool:
    return sampling.temperature == 0 or request.sampling.seed is None


def _is_like(a: CompletionRequest, b: CompletionRequest) -> bool:
    return (a.path, a.language, a.context, a.after, a.sparse) == (b.path, b.language, b.context, b.after, b.sparse)


def _is_same_way(earlier: SamplingParams, later: SamplingParams) -> bool:
    same = ("temperature", "top_k", "top_p", "stop")
    is_same = all(getattr(earlier, name) == getattr(later, name) for name in same)
    return is_same and later.max_tokens >= earlier.max_tokens
