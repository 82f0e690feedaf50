"""The scheduler: plans each step and never runs one.

`submit → plan → (runner) → engine`, with `cancel` at any time between steps.

**Who runs.** Sequences of the highest priority that there are; the others stand still, and lose their slot
(`preempt`) when one of higher priority needs it. Work done ahead of a request never delays one.

Among equals tenants take turns: a slot goes to the one that has the fewest.

**What a step computes.** One token of every sequence that decodes, and the draft behind it where that pays; the short
tails of prompts, which is what a keystroke leaves, side by side as rows; and one chunk of the longest-waiting long
prompt. While others decode, the chunk is the one with the most tokens per second of those that make a step no more
slower than its budget (`budgets.py`) allows, so that running sequences never wait for a whole prompt and the prompt
still comes on.

Invariants (`check_integrity`): every sequence is waiting or running, never both; a running one holds one slot, a
waiting one none; a sequence leaves in exactly one of the states finished, cancelled, failed.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from engine.budgets import FixedBudgets
from engine.costs import StepCosts
from engine.drafts.drafting import Drafting
from engine.drafts.lengths import LengthController
from engine.drafts.sources import NO_DRAFT, Draft
from engine.prefix_store import BlockCopy, PrefixStore
from engine.sequence import Sequence
from engine.shapes import MAX_SCORED, Shape, ShapeFamily
from engine.slots import SlotTable
from engine.types import PRIORITIES, FinishReason, FinishState, Priority, Request

_UNHURRIED_CHUNK_S = 0.02
"""What a chunk of lower priority may take: so long can it delay a request that comes meanwhile."""


class PlannedRow(NamedTuple):
    """Compute `num_tokens` pending tokens of a sequence, and its draft behind them."""

    sequence: Sequence
    num_tokens: int
    draft: Draft = NO_DRAFT


class PlannedRun(NamedTuple):
    """One program: some rows, and maybe a chunk, in a shape of the family."""

    shape: Shape
    rows: list[PlannedRow]
    chunk: PlannedRow | None = None

    @property
    def all_rows(self) -> list[PlannedRow]:
        return self.rows if self.chunk is None else [*self.rows, self.chunk]


class StepPlan(NamedTuple):
    """One step: KV to move first, saves before loads, then programs to run in turn."""

    saves: list[BlockCopy]
    loads: list[BlockCopy]
    runs: list[PlannedRun]


class Ended(NamedTuple):
    """A sequence that left, and how."""

    sequence: Sequence
    state: FinishState
    reason: FinishReason
    error: str = ""


class Scheduler:
    """Waiting and running sequences of one engine."""

    def __init__(
        self,
        *,
        num_slots: int,
        shapes: ShapeFamily,
        costs: StepCosts,
        prefix_store: PrefixStore,
        drafting: Drafting | None,
        lengths: LengthController,
        budgets: FixedBudgets,
        reuses_kv: bool = True,
    ) -> None:
        """`drafting`: None for none; `reuses_kv`: whether prompts begin with what earlier ones left."""
        self._reuses_kv = reuses_kv
        self._slots = SlotTable(num_slots)
        self._shapes, self._costs, self._prefix_store = shapes, costs, prefix_store
        self._drafting, self._lengths, self._budgets = drafting, lengths, budgets
        self._waiting: dict[Priority, deque[Sequence]] = {priority: deque() for priority in PRIORITIES}
        self._running: list[Sequence] = []
        self.num_preempted = 0

    def num_running(self, least: Priority = PRIORITIES[-1]) -> int:
        """Count the sequences that hold a slot and have this priority or a higher one."""
        rank = PRIORITIES.index(least)
        return sum(PRIORITIES.index(sequence.request.priority) <= rank for sequence in self._running)

    def num_waiting(self, least: Priority = PRIORITIES[-1]) -> int:
        """Count the waiting sequences of this priority and all higher ones."""
        return sum(len(self._waiting[priority]) for priority in PRIORITIES[: PRIORITIES.index(least) + 1])

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of its queue."""
        self._waiting[sequence.request.priority].append(sequence)
        self._budgets.note_entered(sequence)

    def plan(self) -> StepPlan:
        """Admit waiting sequences into slots, then plan the next step; nothing in `runs` means nothing to do."""
        self._budgets.begin_step()
        saves: list[BlockCopy] = []
        loads: list[BlockCopy] = []
        for priority in PRIORITIES:
            while self._waiting[priority] and self._admit(chosen := self._choose(priority), saves, loads):
                self._waiting[priority].remove(chosen)
        return StepPlan(saves, loads, self._plan_runs())

    def cancel(self, request_id: str) -> Ended | None:
        """Take a sequence out wherever it is; None if it is not here."""
        for sequence in self._all():
            if sequence.request.request_id == request_id:
                return self.end(sequence, "cancelled", "cancelled")
        return None

    def end(self, sequence: Sequence, state: FinishState, reason: FinishReason, error: str = "") -> Ended:
        """Take a sequence out and free its slot; what was computed stays there as valid KV."""
        if sequence.slot < 0:
            self._waiting[sequence.request.priority].remove(sequence)
        else:
            self._give_up_slot(sequence)
        self._budgets.note_left(sequence)
        return Ended(sequence, state, reason, error)

    def end_all(self, state: FinishState, reason: FinishReason, error: str) -> list[Ended]:
        """Take every sequence out."""
        return [self.end(sequence, state, reason, error) for sequence in tuple(self._all())]

    def fail_running(self, error: str) -> list[Ended]:
        """End every running sequence and forget all KV, after a step that failed."""
        ended = [self.end(sequence, "failed", "failed", error) for sequence in tuple(self._running)]
        self._slots.forget()
        self._prefix_store.clear()
        return ended

    def check_integrity(self) -> None:
        """Assert the invariants of this module, of the slot table and of the prefix store."""
        waiting = [sequence for queue in self._waiting.values() for sequence in queue]
        assert not set(map(id, waiting)) & set(map(id, self._running)), "a sequence both waits and runs"
        assert all(sequence.slot == -1 and not sequence.num_computed for sequence in waiting), "waits with a slot"
        assert all(0 <= sequence.num_computed < len(sequence.tokens) for sequence in self._running), "nothing pending"
        held = [sequence.slot for sequence in self._running]
        assert len(held) == len(set(held)), "two sequences hold one slot"
        self._slots.check_integrity(set(held))
        self._prefix_store.check_integrity()

    def _all(self) -> Iterator[Sequence]:
        yield from self._running
        for queue in self._waiting.values():
            yield from queue

    def _choose(self, priority: Priority) -> Sequence:
        """Return who is next: of the tenant with the fewest running sequences the one that waits for longest."""
        running = Counter(sequence.request.tenant for sequence in self._running)
        return min(self._waiting[priority], key=lambda sequence: running[sequence.request.tenant])

    def _admit(self, sequence: Sequence, saves: list[BlockCopy], loads: list[BlockCopy]) -> bool:
        """Give a sequence a slot, one of lower priority's if need be; False: there is none."""
        if len(self._running) == self._slots.num_slots and not self._preempt_for(sequence.request.priority):
            return False
        request, tokens = sequence.request, sequence.token_array()
        may_reuse = self._reuses_kv and not request.is_fresh
        grant = self._slots.acquire(
            tokens,
            request.tenant,
            _slot_name(request),
            may_reuse=may_reuse,
            is_sparse=sequence.focus is not None,
        )
        assert grant is not None, "fewer running sequences than slots, yet none is free"
        slot, num_reused, displaced, displaced_tenant, sequence.num_dense = grant
        store = self._prefix_store
        found = [] if not may_reuse else store.match(slot, tokens, request.tenant, start=num_reused)
        kept = frozenset(copy.block for copy in (*found, *loads))
        saves += store.save(slot, displaced, displaced_tenant, start=num_reused, kept=kept)
        if found:
            loads += found
            num_reused = min(found[-1].position + store.block_tokens, len(tokens) - 1)
        if not sequence.num_generated:
            sequence.num_reused = num_reused
        sequence.slot, sequence.num_computed = slot, num_reused
        sequence.started_at = sequence.started_at or time.monotonic()
        self._running.append(sequence)
        return True

    def _preempt_for(self, priority: Priority) -> bool:
        """Free the slot of the sequence that matters least, if it matters less than `priority`."""
        rank = PRIORITIES.index
        least = max(self._running, key=lambda sequence: (rank(sequence.request.priority), sequence.started_at))
        if rank(least.request.priority) <= rank(priority):
            return False
        self._give_up_slot(least)
        self._waiting[least.request.priority].appendleft(least)
        self.num_preempted += 1
        return True

    def _give_up_slot(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        computed = np.array(sequence.tokens[: sequence.num_computed], np.int32)
        self._slots.release(
            sequence.slot, computed, sequence.request.tenant, _slot_name(sequence.request), num_dense=sequence.num_dense
        )
        sequence.slot, sequence.num_computed, sequence.num_dense = -1, 0, None

    def _plan_runs(self) -> list[PlannedRun]:
        if not self._running:
            return []
        priority = min((sequence.request.priority for sequence in self._running), key=PRIORITIES.index)
        active = [sequence for sequence in self._running if sequence.request.priority == priority]
        widest = self._shapes.width_buckets[-1]
        short = [sequence for sequence in active if sequence.num_pending <= widest]
        long = next((sequence for sequence in active if sequence.num_pending > widest), None)
        rows = [PlannedRow(sequence, sequence.num_pending) for sequence in short]
        if long is None:
            return [self._rows_run(rows)]
        if all(row.num_tokens == 1 for row in rows):
            return [self._chunk_run(rows, long)]
        return [self._rows_run(rows), self._chunk_run([], long)]

    def _rows_run(self, rows: list[PlannedRow]) -> PlannedRun:
        """Return a run of these rows, and as much of their drafts as pays, or as fits beside a tail."""
        width = self._shapes.for_rows(len(rows), max(row.num_tokens for row in rows)).width
        widest = self._budgets.widest_draft(len(rows)) if width == 1 else None
        if width > 1 or (widest != 1 and self._lengths.wants_drafts(len(rows))):
            rows = [row._replace(draft=self._draft(row.sequence)) for row in rows]
        if width == 1 and widest != 1:
            width = self._lengths.choose_width([row.draft for row in rows], widest=widest)
        rows = [row._replace(draft=row.draft.first(width - row.num_tokens)) for row in rows]
        return PlannedRun(self._shapes.for_rows(len(rows), width), rows)

    def _draft(self, sequence: Sequence) -> Draft:
        if self._drafting is None or sequence.request.is_fresh:
            return NO_DRAFT
        room = min(MAX_SCORED - 1, sequence.num_left - 1)
        return self._drafting.propose(sequence.sources, room, is_healing=bool(sequence.heal))

    def _chunk_run(self, rows: list[PlannedRow], long: Sequence) -> PlannedRun:
        """Return a run of the chunk with the most tokens per second that neither stalls the rows nor delays others."""
        if rows:
            stall = self._budgets.stall(len(rows))
            limit_s = stall * self._costs.seconds(self._shapes.for_rows(len(rows), 1))
        else:
            limit_s = float("inf") if long.request.priority == PRIORITIES[0] else _UNHURRIED_CHUNK_S
        sizes = self._shapes.mixed_chunk_buckets if rows else self._shapes.chunk_buckets
        seconds = {size: self._costs.seconds(self._shapes.for_chunk(size, num_rows=len(rows))) for size in sizes}
        allowed = [size for size in sizes if seconds[size] <= limit_s] or sizes[:1]
        size = max(allowed, key=lambda size: (min(size, long.num_pending) / seconds[size], size))
        shape = self._shapes.for_chunk(size, num_rows=len(rows))
        return PlannedRun(shape, rows, PlannedRow(long, min(shape.chunk, long.num_pending)))


def _slot_name(request: Request) -> str:
    return request.session + "\0aside" if request.session and request.is_aside else request.session
