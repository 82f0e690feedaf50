"""Budgets of a step: how much slower a chunk may make it, and how wide drafts may be.

The scheduler asks for them and obeys; the rules that choose by measured costs (`scheduler.py`, `drafts/lengths.py`)
stay in force within them. Whatever they are, the tokens stay the same. `FixedBudgets` are constants. `LearnedBudgets`
find out by themselves (`learned_budget.py`, `bandit.py`) which of a few values pays, the constant among them.

A value is kept for a window of about a second in which somebody waits or is written for. What it paid is how little
slower than alone people got their text in the window (`slowdown.py`), as a logarithm: 0.1 are ten percent. Each budget
has contexts, in which other values may be best: how many rows there are, by compiled program; for the chunk, whether
more wait than are written for; for drafts, whether most of their tokens were accepted lately. Where there is nobody to
weigh against another, nothing is tried.

Knows no JAX and no clock but the times it is told. Used by the engine's thread; `counts` may be read by others.
"""

import logging
import math

from engine.costs import StepCosts, WidthCosts
from engine.learned_budget import LearnedBudget
from engine.sequence import Sequence
from engine.shapes import ShapeFamily
from engine.slowdown import Slowdown
from engine.types import PRIORITIES, BudgetMode

logger = logging.getLogger(__name__)

STALL = 2.5
"""A step with a chunk may take so many times as long as the same step without it."""
STALLS = (STALL, 1.25, 8.0)
"""What is tried: nearly always the smallest chunk beside rows, and nearly always the largest."""
_WINDOW_S, _WINDOW_STEPS = 1.0, 16
"""A window has at least so many seconds of steps, and so many steps."""
_FOLLOW = 0.05


class FixedBudgets:
    """The budgets that are always right enough; also what the engine tells any budgets, which these do not need."""

    @property
    def counts(self) -> dict[str, int]:
        """Windows by `budget/context/value`."""
        return {}

    def begin_step(self) -> None:
        """A step is going to be planned."""

    def stall(self, num_rows: int) -> float:
        """Return how many times as long a step with a chunk beside `num_rows` rows may take as without it."""
        del num_rows
        return STALL

    def widest_draft(self, num_rows: int) -> int | None:
        """Return the widest program that may verify drafts of `num_rows` decoding rows; 1: none; None: any."""
        del num_rows
        return None

    def note_entered(self, sequence: Sequence) -> None:
        """A sequence was submitted."""

    def note_left(self, sequence: Sequence) -> None:
        """A sequence has ended."""

    def note_step(self, now_s: float, seconds: float) -> None:
        """A program has run; called before what came out is noted."""

    def note_progress(
        self, sequence: Sequence, num_prompt_tokens: int, *, num_new_tokens: int = 0, num_drafted_tokens: int = 0
    ) -> None:
        """A sequence got further; called before its new tokens are appended."""


class LearnedBudgets(FixedBudgets):
    """Budgets that follow what was measured."""

    def __init__(self, costs: StepCosts, shapes: ShapeFamily, *, has_drafts: bool, seed: int = 0) -> None:
        self._costs, self._shapes = costs, shapes
        self._stalls = LearnedBudget("chunk", STALLS, seed=2 * seed)
        widths = WidthCosts(costs, shapes).widths
        self._drafts = LearnedBudget("drafts", widths[::-1], seed=2 * seed + 1)
        self._has_drafts = has_drafts and len(widths) > 1
        widest, most = shapes.width_buckets[-1], shapes.row_buckets[-1]
        self._rows = {rows: f"rows up to {shapes.for_rows(rows, widest).rows}" for rows in range(1, most + 1)}
        """By numbers of rows: those of the program that computes them beside a chunk."""
        self._slowdown = Slowdown()
        self._accepted_share = 0.5
        self._window_s, self._num_steps = 0.0, 0

    @property
    def counts(self) -> dict[str, int]:
        return self._stalls.counts | self._drafts.counts

    def begin_step(self) -> None:
        if self._window_s < _WINDOW_S or self._num_steps < _WINDOW_STEPS:
            return
        costs, shapes = self._costs, self._shapes
        slowdown = self._slowdown.take(
            prompt_token_s=min(costs.seconds(shapes.for_chunk(size)) / size for size in shapes.chunk_buckets),
            new_token_s=costs.seconds(shapes.for_rows(1, 1)),
        )
        reward = None if slowdown is None else -math.log(slowdown)
        logger.debug("a window of %d steps, %.2f s: slowdown %s", self._num_steps, self._window_s, slowdown)
        for budget in (self._stalls, self._drafts):
            budget.settle(reward, self._num_steps)
        self._window_s, self._num_steps = 0.0, 0

    def stall(self, num_rows: int) -> float:
        waiting, writing = self._slowdown.num_waiting, self._slowdown.num_writing
        if not (waiting and writing):  # work that nobody waits for: the rule will do
            return STALL
        return self._stalls.ask(f"{self._rows[num_rows]}, {'more wait' if waiting > writing else 'few wait'}")

    def widest_draft(self, num_rows: int) -> int | None:
        if not self._has_drafts or num_rows < 2 or self._slowdown.num_writing < 2:
            return None  # drafts of one sequence delay no other: what they cost decides
        accepted = "most accepted" if self._accepted_share >= 0.5 else "few accepted"
        return int(self._drafts.ask(f"{self._rows[num_rows]}, {accepted}"))

    def note_entered(self, sequence: Sequence) -> None:
        if _is_waited_for(sequence):
            self._slowdown.enter(sequence.submitted_at)

    def note_left(self, sequence: Sequence) -> None:
        if _is_waited_for(sequence):
            self._slowdown.leave(is_writing=bool(sequence.num_generated))

    def note_step(self, now_s: float, seconds: float) -> None:
        slowdown = self._slowdown
        slowdown.pass_time(now_s)
        if not (slowdown.num_waiting or slowdown.num_writing):
            return
        self._window_s += seconds
        self._num_steps += 1

    def note_progress(
        self, sequence: Sequence, num_prompt_tokens: int, *, num_new_tokens: int = 0, num_drafted_tokens: int = 0
    ) -> None:
        if not _is_waited_for(sequence):
            return
        if num_drafted_tokens:
            share = (num_new_tokens - 1) / num_drafted_tokens
            self._accepted_share += _FOLLOW * (share - self._accepted_share)
        self._slowdown.advance(num_prompt_tokens, num_new_tokens, is_first=not sequence.num_generated)


def make_budgets(mode: BudgetMode, costs: StepCosts, shapes: ShapeFamily, *, has_drafts: bool) -> FixedBudgets:
    """Return the budgets of one engine."""
    return LearnedBudgets(costs, shapes, has_drafts=has_drafts) if mode == "learned" else FixedBudgets()


def _is_waited_for(sequence: Sequence) -> bool:
    return sequence.request.priority == PRIORITIES[0]
