"""The engine's state of one request: its tokens, its slot, its counters. Decides nothing."""

import time

import numpy as np

from engine.detokenizer import Detokenizer
from engine.drafts.drafting import Sources
from engine.types import Phase, Request, Sink, Usage


class Sequence:
    """One request on its way.

    `tokens` is the prompt and what was generated. The first `num_computed` of them have their KV in the slot, the rest
    is pending; once nothing is pending but the last token, the sequence decodes. One that was preempted has lost its
    slot: all its tokens are pending again, and it goes on where it was.
    """

    def __init__(
        self,
        *,
        request: Request,
        sink: Sink,
        prompt: tuple[int, ...],
        heal: bytes,
        num_dropped: int,
        max_tokens: int,
        max_context: int,
        detokenizer: Detokenizer,
        sources: Sources,
        focus: tuple[int, int] | None = None,
        fallback: str | None = None,
    ) -> None:
        """`max_tokens` limits the new tokens, `max_context` all; `sources`: what its drafts are made of.

        `focus`: the positions around the cut and the cursor, if its prompt gets block-sparse attention; `fallback`: why
        it does not, though it should.
        """
        self.request, self.sink, self.detokenizer = request, sink, detokenizer
        self.sources = sources
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.heal = heal
        """Bytes before the cursor that the next tokens still have to write (token healing)."""
        self.max_tokens, self._max_context = max_tokens, max_context
        self.num_healing = 0
        """Generated tokens that only wrote bytes before the cursor: not new text, so not held against the limit."""
        self.slot = -1
        self.num_computed = 0
        self.num_reused = 0
        self.num_dropped = num_dropped
        self.focus, self.fallback = focus, fallback
        self.num_dense: int | None = None
        """Leading tokens whose KV is dense attention's; None: all. The KV of others serves sparse sequences only."""
        self.logit_gap: float | None = None
        """Smallest since the last output; see `Output.logit_gap`."""
        self.submitted_at = time.monotonic()
        self.started_at = 0.0
        self.first_token_at = 0.0

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_new(self) -> int:
        """Generated tokens that count against the limit."""
        return self.num_generated - self.num_healing

    @property
    def num_left(self) -> int:
        """How many tokens may still come."""
        return min(self.max_tokens - self.num_new, self._max_context - len(self.tokens))

    @property
    def phase(self) -> Phase:
        return "decode" if self.num_generated and self.num_pending == 1 else "prefill"

    def append(self, token: int, logit_gap: float) -> None:
        """Take one new token."""
        if not self.num_generated:
            self.first_token_at = time.monotonic()
        self.tokens.append(token)
        self.sources.append([token])
        self.logit_gap = logit_gap if self.logit_gap is None else min(self.logit_gap, logit_gap)

    def take_logit_gap(self) -> float | None:
        """Return the smallest gap since the last call."""
        gap, self.logit_gap = self.logit_gap, None
        return gap

    def usage(self) -> Usage:
        """Return what the request has cost so far."""
        return Usage(
            num_prompt_tokens=self.num_prompt,
            num_reused_tokens=self.num_reused,
            num_generated_tokens=self.num_generated,
            num_dropped_tokens=self.num_dropped,
            queue_s=max(0.0, self.started_at - self.submitted_at),
            first_token_s=max(0.0, self.first_token_at - self.submitted_at),
            total_s=time.monotonic() - self.submitted_at,
        )

    def token_array(self) -> np.ndarray:
        """Return all tokens, int32 `[T]`."""
        return np.array(self.tokens, np.int32)
