"""Chooses, for one sequence at one step, the draft that promises most.

Knows what was accepted before (`acceptance.py`), not what verifying costs (`lengths.py`) and not what the tokens mean.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from engine.drafts.acceptance import Acceptance
from engine.drafts.corpus import Corpora, CorpusLookup
from engine.drafts.matching import TokenBuffer
from engine.drafts.sources import NO_DRAFT, Draft, Drafter, GivenText, PromptLookup

_ENOUGH = 0.8
"""Sources that come later are not asked when a draft promises this share of the limit."""


class Sources:
    """What a sequence's drafts are made of: its tokens so far, and its drafters in the order they are asked."""

    def __init__(self, history: TokenBuffer, drafters: list[Drafter]) -> None:
        self.history, self.drafters = history, drafters

    def append(self, tokens: Sequence[int]) -> None:
        """Take in tokens that the sequence got."""
        self.history.append(tokens)


class Drafting:
    """Proposes drafts for the sequences of one engine."""

    def __init__(self, acceptance: Acceptance, corpora: Corpora, *, markers: Iterable[int] = ()) -> None:
        """`markers` are ids that no draft may contain: those that separate the parts of a prompt."""
        self._acceptance, self._corpora = acceptance, corpora
        self._markers = frozenset(markers)
        self._prompt_lookup = PromptLookup()

    def begin(self, prompt: Sequence[int] | np.ndarray, *, tenant: str, given: Sequence[int] = ()) -> Sources:
        """Return the sources of a new sequence; `given` is a text that is expected to come out (`GivenText`)."""
        drafters: list[Drafter] = [self._prompt_lookup, CorpusLookup(self._corpora, tenant)]
        if len(given):
            drafters.insert(0, GivenText(given, num_prompt_tokens=len(prompt)))
        return Sources(TokenBuffer(prompt), drafters)

    def propose(self, sources: Sources, limit: int, *, is_healing: bool = False) -> Draft:
        """Return the draft of at most `limit` tokens of which most are expected to be accepted.

        Of sources that promise the same the earlier one is taken; without tokens if no source has any. While the token
        at the cursor is healed, what comes next is known to begin with its bytes, which only a given text takes into
        account.
        """
        best, best_expected = NO_DRAFT, 0.0
        if limit <= 0:
            return best
        for drafter in sources.drafters:
            if is_healing and not isinstance(drafter, GivenText):
                continue
            draft = self._without_markers(drafter.propose(sources.history, limit))
            expected = self._acceptance.expected(draft)[-1]
            if expected > best_expected:
                best, best_expected = draft, expected
            if best_expected >= _ENOUGH * limit:
                break
        return best

    def _without_markers(self, draft: Draft) -> Draft:
        if self._markers.isdisjoint(draft.tokens):
            return draft
        end = next(i for i, token in enumerate(draft.tokens) if token in self._markers)
        return draft._replace(tokens=draft.tokens[:end], shares=draft.shares[:end])
