"""How many draft tokens to verify: the program width that yields most tokens per second, 1 when drafts do not pay.

Knows rates and seconds, no tokens. Deterministic: the same calls give the same widths.
"""

from collections.abc import Sequence
from typing import Protocol

from engine.drafts.acceptance import Acceptance
from engine.drafts.sources import Draft

_PROBE_SHARE = 0.02
"""Share of the time without drafts that may be spent on trying them again."""
_PATIENCE = 32
"""Steps without a draft that pays, after which drafts are only looked for when they would be tried."""


class Costs(Protocol):
    """What verifying costs."""

    widths: tuple[int, ...]
    """Tokens per row of the programs there are, ascending, the first one 1."""

    def cost_s(self, num_rows: int, width: int) -> float:
        """Return the seconds of a step of so many rows at this width."""


class LengthController:
    """Chooses one width for all rows of a step.

    Drafts that do not pay are not verified, so nothing more would be learnt of them. Therefore steps without drafts
    save up a small share of their time, and when it covers what the smallest width costs more, drafts are tried
    though they do not seem to pay.
    """

    def __init__(self, acceptance: Acceptance, costs: Costs) -> None:
        self._acceptance, self._costs = acceptance, costs
        self._saved_s = 0.0
        self._num_fruitless = 0

    def wants_drafts(self, num_rows: int) -> bool:
        """Tell whether looking for drafts is worth the host's time at this step."""
        return len(self._costs.widths) > 1 and (
            self._num_fruitless < _PATIENCE or self._saved_s >= self._probe_cost_s(num_rows)
        )

    def choose_width(self, drafts: Sequence[Draft], *, widest: int | None = None) -> int:
        """Return the width for one step; `drafts` has one entry a row, without tokens where there is no draft.

        A width of w verifies the first w - 1 tokens of every draft; none is above `widest`, if that is given. Call it
        at every decode step in which drafts are allowed, whether or not they were looked for.
        """
        num_rows = len(drafts)
        widths = tuple(width for width in self._costs.widths if widest is None or width <= widest)
        promises = [self._acceptance.expected(draft) for draft in drafts if draft.tokens]

        def tokens_per_s(width: int) -> float:
            accepted = sum(promise[min(width, len(promise)) - 1] for promise in promises)
            return (num_rows + accepted) / self._costs.cost_s(num_rows, width)

        best = max(widths, key=tokens_per_s) if promises else 1
        if best > 1:
            self._num_fruitless = 0
            return best
        if promises and len(widths) > 1 and self._saved_s >= (extra_s := self._probe_cost_s(num_rows)):
            self._saved_s -= extra_s
            return widths[1]
        self._num_fruitless += 1
        if len(widths) > 1:
            plain_s = self._costs.cost_s(num_rows, 1)
            self._saved_s = min(self._saved_s + _PROBE_SHARE * plain_s, max(plain_s, self._probe_cost_s(num_rows)))
        return 1

    def _probe_cost_s(self, num_rows: int) -> float:
        costs = self._costs
        return max(0.0, costs.cost_s(num_rows, costs.widths[1]) - costs.cost_s(num_rows, 1))
