"""The engine's nouns: what goes in (`Request`), what comes out (`Output`, `Finish`).

Knows no JAX, no network, no editor. All types are immutable values.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

Phase = Literal["prefill", "decode"]
FinishState = Literal["finished", "cancelled", "failed"]
FinishReason = Literal["stop", "length", "cancelled", "failed"]
Priority = Literal["interactive", "speculative", "background"]

SparseMode = Literal["auto", "on", "off"]
BudgetMode = Literal["fixed", "learned"]

PRIORITIES: tuple[Priority, ...] = ("interactive", "speculative", "background")
"""Highest first. Somebody waits for interactive work; speculative work may be asked for soon; background work keeps."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when to stop."""

    temperature: float = 0.0
    """0 is greedy; larger is more random."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    seed: int = 0
    """With the same seed, prompt and parameters the same tokens come out, whatever runs beside them."""
    max_tokens: int = 64
    """Stop after so many new tokens."""
    stop: tuple[str, ...] = ()
    """Stop before the first of these texts appears."""


class ContextChunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Text of another place in the project that may help."""

    path: str
    text: str


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client asked: fill in at the cursor between `before` and `after`."""

    request_id: str
    before: str
    """Text left of the cursor."""
    after: str = ""
    """Text right of the cursor."""
    cut: int = 0
    """Index into `before`, a line start: text from here to the cursor is placed after the MID marker (`fim.py`)."""
    path: str = ""
    """Path of the file within its project; tells the model the language. Empty: unknown."""
    context: tuple[ContextChunk, ...] = ()
    """Other places of the project, the most useful last; dropped from the front when the prompt is too long."""
    sampling: SamplingParams = SamplingParams()
    tenant: str = ""
    """Requests of different tenants never share KV."""
    session: str = ""
    """The same for all requests from one open file of one tenant: they return to its slot. Empty: none."""
    is_aside: bool = False
    """Work for the session that has a slot of its own, so that the KV in the session's slot stays."""
    draft: str = ""
    """Text that is expected to come out, such as the answer to a similar request; if it is wrong it costs some time."""
    priority: Priority = "interactive"
    """Work of lower priority runs only while there is none of higher, and is preempted for it."""
    sparse: SparseMode = "auto"
    """Block-sparse attention while the prompt is computed; auto: as the engine's setting says."""
    is_fresh: bool = False
    """Compute everything anew, use no KV of earlier requests: the oracle of every reuse."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one request cost, in tokens."""

    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    """Prompt tokens whose KV was already there, so that they were not computed."""
    num_generated_tokens: int = 0
    num_dropped_tokens: int = 0
    """Tokens of context, before and after that were cut away because the prompt was longer than the model's context."""
    queue_s: float = 0.0
    """Seconds from submission to the first step."""
    first_token_s: float = 0.0
    """Seconds from submission to the first token; 0 when there was none."""
    total_s: float = 0.0
    """Seconds from submission to the end."""


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended: in exactly one of finished, cancelled, failed."""

    state: FinishState
    reason: FinishReason
    usage: Usage
    error: str = ""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """New text of one request. The last output of a request, and only the last, carries `finish`."""

    request_id: str
    text: str
    logit_gap: float | None = None
    """Smallest distance between the two best scores at any token since the last output; near 0 means that rounding
    could have chosen another token. None: no token."""
    finish: Finish | None = None


Sink = Callable[[Output], None]
"""Receives the outputs of one request, in order, on the engine's thread. Must not block and must not raise."""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since start, and gauges of this moment."""

    num_slots: int = 0
    max_context: int = 0
    """Most tokens of a sequence, prompt and completion together; 0: not told."""
    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    """Share of the slots that hold a running sequence, 0 to 1."""
    num_finished: int = 0
    num_cancelled: int = 0
    num_failed: int = 0
    num_rejected: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_generated_tokens: int = 0
    num_computed_tokens: int = 0
    """Prompt tokens that the device ran over and tokens that it chose, counted as they happen: also of requests that
    still run, or were cancelled or failed later. Tokens of rejected drafts count too. The other counts of tokens are of
    requests that have ended."""
    num_drafted_tokens: int = 0
    """Tokens of drafts that were verified."""
    num_accepted_tokens: int = 0
    """Those that the model chose too."""
    num_preempted: int = 0
    num_stored_blocks: int = 0
    """Blocks of KV in the prefix store now."""
    num_restored_blocks: int = 0
    """Blocks copied from the prefix store into a slot."""
    num_sparse: int = 0
    """Requests whose prompts got block-sparse attention."""
    num_kept_blocks: int = 0
    """Blocks that block-sparse attention kept, over all layers and heads,"""
    num_visible_blocks: int = 0
    """and blocks that dense attention would have met in their place."""
    num_sparse_choices: int = 0
    """Choices of blocks, one for 64 queries, a layer and a head of the KV;"""
    sum_kept_mass: float = 0.0
    """and the shares of attention that the blocks kept have by their scores, summed up over them: an estimate."""
    num_sparse_fallbacks: dict[str, int] = {}
    """Requests that should have been sparse and were dense, by the reason (`engine.model.block_sparse.Fallback`)."""
    num_budget_windows: dict[str, int] = {}
    """Windows of about a second in which learned budgets had some value, by `budget/context/value`
    (`engine.budgets`)."""
    num_steps: int = 0
    num_recompiles: int = 0
    """Programs compiled after warm-up; anything but 0 is a defect."""

    @property
    def kept_mass(self) -> float:
        """Mean share of attention that the blocks kept have by their scores; 1 where nothing was sparse."""
        return self.sum_kept_mass / self.num_sparse_choices if self.num_sparse_choices else 1.0


class CompletionEngine(Protocol):
    """What a server needs of an engine. All methods may be called from any thread."""

    @property
    def is_alive(self) -> bool:
        """False once it has ended, by `close` or because of a defect."""

    @property
    def identity(self) -> str:
        """Name of all that decides an answer besides the request: weights, types, layout of prompts."""

    def submit(self, request: Request, sink: Sink) -> None:
        """Accept a request, or raise RequestError, QueueFullError or EngineClosedError."""

    def cancel(self, request_id: str) -> None:
        """End a request within one step; unknown or ended ids are ignored."""

    def stats(self) -> EngineStats:
        """Return counters and gauges."""

    def close(self, *, timeout_s: float) -> None:
        """Refuse new requests, let running ones end, fail what is left after `timeout_s`, stop."""
