"""The server's nouns: what a client asks (`CompletionRequest`), gets (`AnswerPart`) and has (`Completion`).

Transport-free; `wire.py` gives them their protobuf form. Knows no gRPC and no engine internals.
"""

from typing import Literal

import msgspec

from engine.types import ContextChunk, FinishReason, Output, SparseMode, Usage

TrimMode = Literal["auto", "line", "block", "off"]
"""Where a completion ends. auto: a line or a block, by what stands around the cursor; off: where the model ends it."""
Source = Literal["model", "session", "prefetch", "memory", "type-through", "shared"]
"""Where an answer came from: a model run, what a session keeps of an earlier one, or of one that was run ahead."""


SuggestionEvent = Literal["shown", "accepted", "partly_accepted", "rejected", "kept", "gone"]
"""What becomes of a suggestion in an editor. kept, gone: whether what was accepted still stood there 30 s later."""


class AnswerPart(Output, frozen=True, kw_only=True):
    """New text of one answer. The last one, and only the last, has `finish`."""

    source: Source = "model"
    num_typed: int = 0
    """Of a whole answer from a session: characters before the cursor that are the beginning of the suggestion."""


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling as a client asks for it; None takes the server's default."""

    temperature: float | None = None
    """0 is greedy; larger is more random."""
    top_k: int | None = None
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    seed: int | None = None
    """The same seed, prompt and parameters give the same text; None: another one each time."""
    max_tokens: int | None = None
    """Stop after so many new tokens."""
    stop: tuple[str, ...] = ()
    """Stop before the first of these texts appears."""


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client asked: the text that belongs between `before` and `after`."""

    before: str
    """Text left of the cursor."""
    after: str = ""
    """Text right of the cursor."""
    request_id: str = ""
    """The client's name for the request; need not be unique. Empty: the server chooses one."""
    path: str = ""
    """Path of the file within its project; tells the model the language. Empty: unknown."""
    language: str = ""
    """Editor's language id, used where the path is empty."""
    context: tuple[ContextChunk, ...] = ()
    """Text of other places of the project, the most useful last."""
    sampling: SamplingOptions = SamplingOptions()
    session_id: str = ""
    """The same for all requests of one open file."""
    is_background: bool = False
    """Nobody waits for it: it runs when there is nothing else, and waits for that as long as its deadline allows."""
    sparse: SparseMode = "auto"
    """Block-sparse attention while the prompt is computed: faster for long prompts, not exact; auto: as configured."""
    is_fresh: bool = False
    """Compute everything anew, use nothing kept from earlier requests."""


class CompletionPart(msgspec.Struct, frozen=True, kw_only=True):
    """Text that came in one chunk."""

    text: str
    logit_gap: float | None
    """Smallest distance between the two best scores at any of its tokens."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    text: str
    """What belongs at the cursor."""
    finish_reason: FinishReason
    """Why generation ended: "stop" or "length"."""
    usage: Usage
    """Tokens and seconds it took, counted by the server."""
    source: str
    """Where the text came from: "model", "session"; "unknown" when only newer clients know."""
    num_typed: int
    """With source "session": so many characters before the cursor are the beginning of the suggestion whose rest this
    is. Asked so far back, the model writes those and this."""
    parts: tuple[CompletionPart, ...]
    """The text as it came."""
    request_id: str
