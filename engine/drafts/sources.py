"""Where drafts come from: the `Drafter` of each source that belongs to one sequence.

Knows no acceptance and no costs: a drafter proposes the best it has, `drafting.py` chooses between them.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from engine.drafts.matching import MAX_MATCH, TokenBuffer, find_places, likeliest_continuation, longest_match


class Draft(NamedTuple):
    """Tokens that may come next, to be verified by the model."""

    tokens: list[int]
    shares: list[float]
    """For each token, the share of the places it was found at that agree with it: 1 when there is one place."""
    source: str
    match_length: int
    """Trailing tokens of the sequence that agree with what stands before the draft in its source."""

    def first(self, count: int) -> "Draft":
        """Return the draft cut to so many tokens."""
        return self._replace(tokens=self.tokens[:count], shares=self.shares[:count])


NO_DRAFT = Draft([], [], "none", 0)


class Drafter(Protocol):
    """One source of drafts for one sequence."""

    def propose(self, history: TokenBuffer, limit: int) -> Draft:
        """Return at most `limit` tokens to follow the history (prompt and generated), or a draft without tokens."""


class PromptLookup:
    """The sequence's own text: what followed the last tokens where they stood before, above, below or written.

    Searches the history itself, a few microseconds for thousands of tokens, so there is nothing to build for a new
    prompt. Source of the technique: prompt lookup decoding (Saxena), here with the longest match rather than a fixed
    one, and with all places of that length voting. One token is a match: measured acceptance decides what it is worth.
    """

    def propose(self, history: TokenBuffer, limit: int) -> Draft:
        tail = history.tail()
        places = find_places(history.array, MAX_MATCH, history.stop - 1, int(tail[0]))
        if not len(places):
            return NO_DRAFT
        length, places = longest_match(history.array, places, tail)
        tokens, shares = likeliest_continuation(history.array, places, limit)
        return Draft(tokens, shares, "prompt", length)


class GivenText:
    """A text that another component expects to come out, such as the completion of a similar request.

    Followed while the output agrees with it. After a difference the output's last tokens are looked for in the text,
    and of the longest match the place nearest to where it was left is taken: a renamed variable or an inserted line
    costs a step or two, not the rest of the text.
    """

    def __init__(self, tokens: Sequence[int] | np.ndarray, *, num_prompt_tokens: int) -> None:
        """`tokens` begin where the prompt ends; where a token is healed, with the bytes to heal."""
        self._text = TokenBuffer(tokens, room=0)
        self._next = MAX_MATCH
        """Index of the token that is expected next; goes on, as a guess, while the text does not agree."""
        self._run = 0
        """Tokens in a row that agreed."""
        self._is_lost = False
        self._num_seen = num_prompt_tokens

    def propose(self, history: TokenBuffer, limit: int) -> Draft:
        self._follow(history)
        if self._is_lost and not self._realign(history):
            return NO_DRAFT
        tokens = self._text.array[self._next : min(self._next + limit, self._text.stop)].tolist()
        return Draft(tokens, [1.0] * len(tokens), "given", self._run)

    def _follow(self, history: TokenBuffer) -> None:
        text = self._text
        for token in history.array[MAX_MATCH + self._num_seen : history.stop].tolist():
            agrees = not self._is_lost and self._next < text.stop and text.array[self._next] == token
            self._run = self._run + 1 if agrees else 0
            self._is_lost = not agrees
            self._next += 1
        self._num_seen = len(history)

    def _realign(self, history: TokenBuffer) -> bool:
        tail = history.tail()
        places = find_places(self._text.array, MAX_MATCH, self._text.stop, int(tail[0]))
        if not len(places):
            return False
        self._run, places = longest_match(self._text.array, places, tail)
        self._next = int(min(places + 1, key=lambda place: abs(int(place) - self._next)))
        self._is_lost = False
        return True
