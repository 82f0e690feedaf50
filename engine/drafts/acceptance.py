"""How often drafts turn out right: estimates for the length controller, and counters for the outside.

Estimates are kept by source and by how long the match was (in powers of two), since those tell good drafts from bad
ones, and apart for a draft's first token and those after it: once the first is right, the text is likely the same.
Old observations fade, so that the estimates follow the work. Knows no costs, no sequences and no tenants.
"""

import msgspec

from engine.drafts.sources import Draft

_FADE = 0.97
"""Weight left to older observations by each new one: about the last 33 drafts of a kind count."""
_PRIOR_WEIGHT = 2.0
_MAX_KIND = 5
"""Bits of the longest match told apart."""


class DraftCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of one source since start."""

    num_drafts: int = 0
    """Drafts that were verified."""
    num_proposed_tokens: int = 0
    """Tokens of drafts that were verified."""
    num_accepted_tokens: int = 0
    """Those that the model chose too. Each saved its sequence one decode step."""


class _Rate:
    """A share, estimated from fading observations and a prior."""

    def __init__(self, prior: float) -> None:
        self._hits, self._trials = prior * _PRIOR_WEIGHT, _PRIOR_WEIGHT

    @property
    def value(self) -> float:
        return min(1.0, self._hits / self._trials)

    def observe(self, hits: float, trials: float) -> None:
        self._hits = self._hits * _FADE + hits
        self._trials = self._trials * _FADE + trials


class Acceptance:
    """What has become of the drafts so far."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, int], tuple[_Rate, _Rate]] = {}
        self._counts: dict[str, DraftCounts] = {}

    def counts(self) -> dict[str, DraftCounts]:
        """Return the totals by source."""
        return dict(self._counts)

    def record(self, draft: Draft, *, num_verified: int, num_accepted: int) -> None:
        """Take in that of a draft's first `num_verified` tokens the model chose the first `num_accepted` too.

        What the model chose counts, also where the sequence ended before it could use all of it.
        """
        assert 0 <= num_accepted <= num_verified <= len(draft.tokens), "more accepted than verified, or than drafted"
        if not num_verified:
            return
        old = self._counts.get(draft.source, DraftCounts())
        self._counts[draft.source] = DraftCounts(
            num_drafts=old.num_drafts + 1,
            num_proposed_tokens=old.num_proposed_tokens + num_verified,
            num_accepted_tokens=old.num_accepted_tokens + num_accepted,
        )
        first, later = self._rates_of(draft)
        first.observe(min(num_accepted, 1), draft.shares[0])
        num_tried = min(num_accepted + 1, num_verified)
        if num_tried > 1:
            later.observe(num_accepted - 1, sum(draft.shares[1:num_tried]))

    def expected(self, draft: Draft) -> list[float]:
        """Return how many tokens are expected to be accepted when the first 0, 1, 2, ... of the draft are verified.

        A token's chance is the measured rate of its kind of draft times the share of places that agree with it.
        """
        totals, path, total = [0.0], 1.0, 0.0
        if draft.tokens:
            first, later = self._rates_of(draft)
            rate, next_rate = first.value, later.value
            for share in draft.shares:
                path *= min(1.0, rate * share)
                total += path
                totals.append(total)
                rate = next_rate
        return totals

    def _rates_of(self, draft: Draft) -> tuple[_Rate, _Rate]:
        kind = (draft.source, min(draft.match_length.bit_length(), _MAX_KIND))
        if kind not in self._rates:
            # Without experience: text that was given is trusted, other text the more the longer the match is.
            prior = 0.7 if draft.source == "given" else 1 - 0.8 ** kind[1]
            self._rates[kind] = (_Rate(prior), _Rate(max(prior, 0.6)))
        return self._rates[kind]
