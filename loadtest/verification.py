"""Verification: whether answers that came without the model are what the model would have said.

An answer is asked for once more, afresh, and the texts are compared. The rest of a suggestion, which a server gives to
whoever types it, is asked for where the suggestion began: the model must say what was typed of it, and then the rest.
(Asked in the middle of its own text a model may go on differently, since typed text is cut into other tokens than those
it wrote, and after a line break the prompt is laid out anew.) Texts agree when they are the same, or when one was
only cut off by the limit of tokens where the other goes on: the rest of an earlier answer is shorter than a whole one.
Where they part, the two best logits of the fresh answer tell whether rounding could have chosen either: nearer than
`NEAR_TIE` it is a near-tie. What is left is a false hit.
"""

from typing import Literal

import msgspec

from loadtest.dialects import Dialect, Query, Reply
from loadtest.outcomes import Outcome
from loadtest.traces import Keystroke
from loadtest.typist import DEADLINE_S, to_query

NEAR_TIE = 0.05
"""Distance of the two best logits below which either may win."""

Verdict = Literal["same", "near-tie", "false hit"]


class Verification:
    """Counts verdicts."""

    def __init__(self) -> None:
        self.counts: dict[Verdict, int] = {"same": 0, "near-tie": 0, "false hit": 0}
        self.unchecked: list[str] = []
        """Why answers could not be checked, one for each."""
        self.false_hits: list[Outcome] = []

    @property
    def num_checked(self) -> int:
        """Answers that have a verdict."""
        return sum(self.counts.values())

    async def check(self, dialect: Dialect, common: Query, keystroke: Keystroke, stored: Outcome) -> None:
        """Ask the model afresh at a keystroke and compare with what was answered there."""
        query = msgspec.structs.replace(to_query(common, keystroke), is_fresh=True)
        if stored.num_typed:
            begins = max(0, len(query.before) - stored.num_typed)
            stored = msgspec.structs.replace(stored, text=query.before[begins:] + stored.text)
            query = msgspec.structs.replace(query, before=query.before[:begins])
        fresh = await dialect.complete(query, deadline_s=DEADLINE_S)
        if fresh.error is not None:
            self.unchecked.append(fresh.error)
        elif not fresh.is_from_model:
            self.unchecked.append(f"asked afresh, the server answered from: {fresh.source or 'it does not say'}")
        else:
            verdict = compare(stored, fresh)
            self.counts[verdict] += 1
            if verdict == "false hit":
                self.false_hits.append(stored)


def compare(stored: Outcome, fresh: Reply) -> Verdict:
    """Judge an answer that came without the model by a fresh one from it."""
    if stored.text == fresh.text:
        return "same"
    parted = next(
        (i for i, (a, b) in enumerate(zip(stored.text, fresh.text, strict=False)) if a != b),
        min(len(stored.text), len(fresh.text)),
    )
    for shorter_text, is_cut_short in ((stored.text, stored.is_cut_short), (fresh.text, fresh.is_cut_short)):
        if parted == len(shorter_text) and is_cut_short:
            return "same"
    gap = _gap_at(fresh, parted)
    return "near-tie" if gap is not None and gap < NEAR_TIE else "false hit"


def _gap_at(reply: Reply, char: int) -> float | None:
    """Return how sure the model was of the part that holds a character, or of the end where it is beyond the text."""
    end = 0
    for part in reply.parts:
        end += part.num_chars
        if char < end:
            return part.logit_gap
    return reply.parts[-1].logit_gap if reply.parts else None
