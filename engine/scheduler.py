"""The scheduler: plans each step and never runs one.

`submit → plan → (runner) → update`, with `cancel` at any time between steps. Each step prefills at most
`chunk_tokens` prompt tokens, shared by the oldest prompts, and decodes one token of every sequence whose prompt is
done: no running sequence waits for a whole prompt.

Invariants (`check_integrity`): every sequence is waiting or running, never both; a running one holds one slot, a
waiting one none; a sequence leaves in exactly one of the states finished, cancelled, failed.
"""

import time
from collections import deque
from typing import NamedTuple

import numpy as np

from engine.detokenizer import Detokenizer
from engine.slots import SlotTable
from engine.types import FinishReason, FinishState, Phase, Request, Sink, Usage


class Sequence:
    """The engine's state of one request: tokens, slot, counters."""

    def __init__(
        self,
        *,
        request: Request,
        sink: Sink,
        prompt: tuple[int, ...],
        heal: bytes,
        num_dropped: int,
        max_tokens: int,
        detokenizer: Detokenizer,
    ) -> None:
        self.request, self.sink, self.detokenizer = request, sink, detokenizer
        self.prompt = np.array(prompt, np.int32)
        self.heal = heal
        """Bytes before the cursor that the next tokens still have to write (token healing)."""
        self.max_tokens = max_tokens
        """The request's limit, or less where the model's context ends earlier."""
        self.generated: list[int] = []
        self.num_healing = 0
        """Generated tokens that only wrote bytes before the cursor: not new text, so not held against the limit."""
        self.slot = -1
        self.num_computed = 0
        """Leading tokens of prompt and completion whose KV is in the slot."""
        self.num_reused = 0
        self.num_dropped = num_dropped
        self.logit_gap: float | None = None
        """Smallest since the last output; see `Output.logit_gap`."""
        self.submitted_at = time.monotonic()
        self.started_at = 0.0
        self.first_token_at = 0.0

    @property
    def phase(self) -> Phase:
        return "prefill" if self.num_computed < len(self.prompt) else "decode"

    def append(self, token: int, logit_gap: float) -> None:
        """Take one new token."""
        if not self.generated:
            self.first_token_at = time.monotonic()
        self.generated.append(token)
        self.logit_gap = logit_gap if self.logit_gap is None else min(self.logit_gap, logit_gap)

    def take_logit_gap(self) -> float | None:
        """Return the smallest gap since the last call."""
        gap, self.logit_gap = self.logit_gap, None
        return gap

    def usage(self) -> Usage:
        """Return what the request has cost so far."""
        return Usage(
            num_prompt_tokens=len(self.prompt),
            num_reused_tokens=self.num_reused,
            num_generated_tokens=len(self.generated),
            num_dropped_tokens=self.num_dropped,
            queue_s=max(0.0, self.started_at - self.submitted_at),
            first_token_s=max(0.0, self.first_token_at - self.submitted_at),
            total_s=time.monotonic() - self.submitted_at,
        )

    def computed_tokens(self) -> np.ndarray:
        """Return the tokens whose KV is in the slot, int32."""
        return np.concatenate([self.prompt, np.array(self.generated, np.int32)])[: self.num_computed]


class PlannedChunk(NamedTuple):
    """Prefill `num_tokens` of a prompt, from `num_computed` on."""

    sequence: Sequence
    num_tokens: int


class StepPlan(NamedTuple):
    """One step: some chunks of prompts, and one token each for the decoding sequences."""

    prefill: list[PlannedChunk]
    decode: list[Sequence]


class Ended(NamedTuple):
    """A sequence that left, and how."""

    sequence: Sequence
    state: FinishState
    reason: FinishReason
    error: str = ""


class Scheduler:
    """Waiting and running sequences of one engine."""

    def __init__(self, *, num_slots: int, chunk_tokens: int) -> None:
        self._slots = SlotTable(num_slots)
        self._chunk_tokens = chunk_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def plan(self) -> StepPlan:
        """Admit waiting sequences into free slots, then plan the next step; empty lists mean nothing to do."""
        while self._waiting:
            first = self._waiting[0]
            taken = self._slots.acquire(first.prompt, first.request.tenant, may_reuse=not first.request.is_fresh)
            if taken is None:
                break
            sequence = self._waiting.popleft()
            sequence.slot, sequence.num_computed = taken
            sequence.num_reused = sequence.num_computed
            sequence.started_at = time.monotonic()
            self._running.append(sequence)
        prefill, budget = [], self._chunk_tokens
        for sequence in self._running:
            if sequence.phase == "prefill" and budget:
                count = min(len(sequence.prompt) - sequence.num_computed, budget)
                prefill.append(PlannedChunk(sequence, count))
                budget -= count
        return StepPlan(prefill, [sequence for sequence in self._running if sequence.phase == "decode"])

    def cancel(self, request_id: str) -> Ended | None:
        """Take a sequence out wherever it is; None if it is not here."""
        for sequence in (*self._running, *self._waiting):
            if sequence.request.request_id == request_id:
                return self.end(sequence, "cancelled", "cancelled")
        return None

    def end(self, sequence: Sequence, state: FinishState, reason: FinishReason, error: str = "") -> Ended:
        """Take a sequence out and free its slot; what was computed stays there as valid KV."""
        if sequence.slot < 0:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._slots.release(sequence.slot, sequence.computed_tokens(), sequence.request.tenant)
            sequence.slot = -1
        return Ended(sequence, state, reason, error)

    def end_all(self, state: FinishState, reason: FinishReason, error: str) -> list[Ended]:
        """Take every sequence out."""
        return [self.end(sequence, state, reason, error) for sequence in (*self._running, *self._waiting)]

    def fail_running(self, error: str) -> list[Ended]:
        """End every running sequence and forget all KV, after a step that failed."""
        ended = [self.end(sequence, "failed", "failed", error) for sequence in tuple(self._running)]
        self._slots.forget()
        return ended

    def check_integrity(self) -> None:
        """Assert the invariants of this module and of the slot table."""
        assert not set(map(id, self._waiting)) & set(map(id, self._running)), "a sequence both waits and runs"
        assert all(sequence.slot == -1 for sequence in self._waiting), "a waiting sequence holds a slot"
        held = [sequence.slot for sequence in self._running]
        assert len(held) == len(set(held)), "two sequences hold one slot"
        self._slots.check_integrity(set(held))
