"""The protobuf forms of the server's nouns, both ways: one place knows both vocabularies.

On the wire the text left and right of the cursor is `prefix` and `suffix`, here it is `before` and `after`.
"""

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from engine.types import ContextChunk, FinishReason, SparseMode, Usage
from server.errors import InvalidRequestError
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.types import (
    AnswerPart,
    Completion,
    CompletionPart,
    CompletionRequest,
    SamplingOptions,
    Source,
    SuggestionEvent,
)

SERVICE_NAME = "cloudcomplete.v1.CompletionService"
RETRY_AFTER_KEY = "retry-after-ms"
TENANT_KEY = "cloudcomplete-tenant"
"""Metadata that names whose request it is. Nothing proves it: let a proxy that knows its users set it."""
PRIORITY_KEY = "cloudcomplete-priority"
"""Metadata: "background" for what nobody waits for, "interactive" else."""
"""Trailing metadata of RESOURCE_EXHAUSTED: milliseconds after which to try again."""
FINISH_REASONS: dict[FinishReason, pb.FinishReason] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}
"""Endings that are answers; cancelled and failed travel as status codes."""
FATES: dict[SuggestionEvent, pb.Fate] = {
    "shown": pb.FATE_SHOWN,
    "accepted": pb.FATE_ACCEPTED,
    "rejected": pb.FATE_REJECTED,
    "kept": pb.FATE_KEPT,
    "gone": pb.FATE_GONE,
}
"""What became of an answer; that it was accepted in part shows in how much of it was."""
MAX_FATES = 1000
SOURCES: dict[Source, pb.Source] = {
    "model": pb.SOURCE_MODEL,
    "session": pb.SOURCE_SESSION,
    "prefetch": pb.SOURCE_PREFETCH,
    "memory": pb.SOURCE_MEMORY,
    "type-through": pb.SOURCE_TYPE_THROUGH,
    "shared": pb.SOURCE_SHARED,
}
SPARSE: dict[SparseMode, pb.Sparse] = {"auto": pb.SPARSE_UNSPECIFIED, "on": pb.SPARSE_ON, "off": pb.SPARSE_OFF}
_SAMPLING_SCALARS = ("temperature", "top_k", "top_p", "seed", "max_tokens")


def decode_request(message: bytes) -> CompletionRequest:
    """Read a `CompleteRequest`; raises InvalidRequestError for bytes that are none, and for invalid UTF-8."""
    try:
        request = pb.CompleteRequest.FromString(message)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the message of {len(message)} bytes is not a CompleteRequest ({error}); "
            "expected protobuf as in completion.proto with valid UTF-8; decode a file's text before sending it"
        ) from None
    return CompletionRequest(
        before=request.prefix,
        after=request.suffix,
        request_id=request.request_id,
        path=request.path,
        language=request.language,
        context=_decode_context(request.context),
        sampling=_decode_sampling(request.sampling),
        session_id=request.session_id,
        is_fresh=request.fresh,
        sparse=_decode_sparse(request.sparse),
    )


def decode_feedback(message: bytes) -> list[tuple[str, SuggestionEvent, int]]:
    """Read a `FeedbackRequest`: names of requests, what became of their answers, how many characters were taken.

    Raises InvalidRequestError.
    """
    try:
        fates = pb.FeedbackRequest.FromString(message).fates
    except DecodeError as error:
        raise InvalidRequestError(
            f"the message of {len(message)} bytes is not a FeedbackRequest ({error}); expected protobuf as in "
            "completion.proto with valid UTF-8"
        ) from None
    if len(fates) > MAX_FATES:
        raise InvalidRequestError(f"{len(fates):,} fates were told at once; expected at most {MAX_FATES:,}; send fewer")
    events = {value: event for event, value in FATES.items()}
    for number, fate in enumerate(fates):
        if fate.fate not in events:
            raise InvalidRequestError(
                f"fates[{number}].fate is {fate.fate}; expected one of {', '.join(pb.Fate.keys()[1:])}; "
                "leave it out, or use a newer server"
            )
    return [(fate.request_id, events[fate.fate], fate.accepted_chars) for fate in fates]


def encode_fate(request_id: str, event: SuggestionEvent, num_accepted: int) -> pb.FeedbackRequest:
    """Write a `FeedbackRequest` with one fate; raises InvalidRequestError for values that no field can hold."""
    try:
        fate = pb.SuggestionFate(request_id=request_id, fate=FATES[event], accepted_chars=num_accepted)
        return pb.FeedbackRequest(fates=[fate])
    except (KeyError, ValueError, TypeError) as error:
        raise _unsendable(error) from None


def decode_event(message: bytes) -> pb.SessionEvent:
    """Read a `SessionEvent`; raises InvalidRequestError for bytes that are none, and for invalid UTF-8."""
    try:
        return pb.SessionEvent.FromString(message)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the message of {len(message)} bytes is not a SessionEvent ({error}); expected protobuf as in "
            "completion.proto with valid UTF-8; decode the file's text, and open the document again with it"
        ) from None


def decode_open(opened: pb.OpenDocument) -> CompletionRequest:
    """Return what all requests about an opened document have in common."""
    return CompletionRequest(
        before="",
        path=opened.path,
        language=opened.language,
        context=_decode_context(opened.context),
        sampling=_decode_sampling(opened.sampling),
        session_id=opened.session_id,
        sparse=_decode_sparse(opened.sparse),
    )


def encode_metadata(tenant: str, *, is_background: bool) -> tuple[tuple[str, str], ...]:
    """Return what a call says of itself beside its message."""
    named = ((TENANT_KEY, tenant),) if tenant else ()
    return (*named, (PRIORITY_KEY, "background")) if is_background else named


def encode_request(request: CompletionRequest) -> pb.CompleteRequest:
    """Write a `CompleteRequest`; raises InvalidRequestError for values that no field of the wire can hold."""
    try:
        return pb.CompleteRequest(
            prefix=request.before,
            suffix=request.after,
            request_id=request.request_id,
            path=request.path,
            language=request.language,
            context=_encode_context(request),
            sampling=_encode_sampling(request),
            session_id=request.session_id,
            fresh=request.is_fresh,
            sparse=SPARSE[request.sparse],
        )
    except (ValueError, TypeError) as error:  # lone surrogates, numbers beyond 32 bits, values of another type
        raise _unsendable(error) from None


def encode_open(common: CompletionRequest, text: str, cursor: int, *, is_quiet: bool) -> pb.OpenDocument:
    """Write what opens a document; raises InvalidRequestError as `encode_request` does."""
    try:
        return pb.OpenDocument(
            session_id=common.session_id,
            path=common.path,
            language=common.language,
            context=_encode_context(common),
            sampling=_encode_sampling(common),
            text=text,
            cursor=cursor,
            quiet=is_quiet,
            sparse=SPARSE[common.sparse],
        )
    except (ValueError, TypeError) as error:
        raise _unsendable(error) from None


def encode_patch(start: int, end: int, text: str) -> pb.Patch:
    """Write a patch, in UTF-16 code units; raises InvalidRequestError for text that is not Unicode."""
    try:
        return pb.Patch(start=start, end=end, text=text)
    except ValueError as error:
        raise _unsendable(error) from None


def encode_part(part: AnswerPart) -> pb.CompletionChunk:
    """Write one part of an answer. Parts that end as cancelled or failed have no chunk: they are status codes."""
    if part.finish is None:
        return pb.CompletionChunk(text=part.text, logit_gap=part.logit_gap)
    usage = part.finish.usage
    return pb.CompletionChunk(
        text=part.text,
        logit_gap=part.logit_gap,
        finish_reason=FINISH_REASONS[part.finish.reason],
        usage=pb.Usage(
            prompt_tokens=usage.num_prompt_tokens,
            reused_tokens=usage.num_reused_tokens,
            generated_tokens=usage.num_generated_tokens,
            dropped_tokens=usage.num_dropped_tokens,
        ),
        timings=pb.Timings(queue_s=usage.queue_s, first_token_s=usage.first_token_s, total_s=usage.total_s),
        source=SOURCES[part.source],
        typed_chars=part.num_typed,
        request_id=part.request_id,
    )


def is_final(chunk: pb.CompletionChunk) -> bool:
    """Tell whether a chunk is the last of its answer."""
    return chunk.finish_reason != pb.FINISH_REASON_UNSPECIFIED


def decode_part(chunk: pb.CompletionChunk) -> CompletionPart:
    """Read what every chunk has."""
    return CompletionPart(text=chunk.text, logit_gap=chunk.logit_gap if chunk.HasField("logit_gap") else None)


def decode_completion(parts: Sequence[CompletionPart], final: pb.CompletionChunk) -> Completion:
    """Read an answer from all its parts and its last chunk. A reason that only newer servers know is "stop"."""
    reasons = {value: name for name, value in FINISH_REASONS.items()}
    sources = {value: name for name, value in SOURCES.items()}
    return Completion(
        text="".join(part.text for part in parts),
        parts=tuple(parts),
        finish_reason=reasons.get(final.finish_reason, "stop"),
        usage=Usage(
            num_prompt_tokens=final.usage.prompt_tokens,
            num_reused_tokens=final.usage.reused_tokens,
            num_generated_tokens=final.usage.generated_tokens,
            num_dropped_tokens=final.usage.dropped_tokens,
            queue_s=final.timings.queue_s,
            first_token_s=final.timings.first_token_s,
            total_s=final.timings.total_s,
        ),
        source=sources.get(final.source, "unknown"),
        num_typed=final.typed_chars,
        request_id=final.request_id,
    )


def _decode_sparse(sparse: int) -> SparseMode:
    """Read the switch; a value that only newer clients know is the server's own choice."""
    return next((mode for mode, value in SPARSE.items() if value == sparse), "auto")


def _decode_context(chunks: Iterable[pb.ContextChunk]) -> tuple[ContextChunk, ...]:
    return tuple(ContextChunk(path=chunk.path, text=chunk.text) for chunk in chunks)


def _encode_context(request: CompletionRequest) -> list[pb.ContextChunk]:
    return [pb.ContextChunk(path=chunk.path, text=chunk.text) for chunk in request.context]


def _decode_sampling(sampling: pb.Sampling) -> SamplingOptions:
    chosen = {name: getattr(sampling, name) for name in _SAMPLING_SCALARS if sampling.HasField(name)}
    return SamplingOptions(**chosen, stop=tuple(sampling.stop))


def _encode_sampling(request: CompletionRequest) -> pb.Sampling:
    options = request.sampling
    chosen = {name: value for name in _SAMPLING_SCALARS if (value := getattr(options, name)) is not None}
    return pb.Sampling(**chosen, stop=options.stop)


def _unsendable(error: Exception) -> InvalidRequestError:
    return InvalidRequestError(
        f"the request cannot be sent: {error}; expected text that is valid Unicode and 32-bit numbers"
    )
