from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Sparse(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPARSE_UNSPECIFIED: _ClassVar[Sparse]
    SPARSE_ON: _ClassVar[Sparse]
    SPARSE_OFF: _ClassVar[Sparse]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_MODEL: _ClassVar[Source]
    SOURCE_SESSION: _ClassVar[Source]
    SOURCE_MEMORY: _ClassVar[Source]
    SOURCE_TYPE_THROUGH: _ClassVar[Source]
    SOURCE_SHARED: _ClassVar[Source]
    SOURCE_PREFETCH: _ClassVar[Source]

class Fate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FATE_UNSPECIFIED: _ClassVar[Fate]
    FATE_SHOWN: _ClassVar[Fate]
    FATE_ACCEPTED: _ClassVar[Fate]
    FATE_REJECTED: _ClassVar[Fate]
    FATE_KEPT: _ClassVar[Fate]
    FATE_GONE: _ClassVar[Fate]
SPARSE_UNSPECIFIED: Sparse
SPARSE_ON: Sparse
SPARSE_OFF: Sparse
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
SOURCE_UNSPECIFIED: Source
SOURCE_MODEL: Source
SOURCE_SESSION: Source
SOURCE_MEMORY: Source
SOURCE_TYPE_THROUGH: Source
SOURCE_SHARED: Source
SOURCE_PREFETCH: Source
FATE_UNSPECIFIED: Fate
FATE_SHOWN: Fate
FATE_ACCEPTED: Fate
FATE_REJECTED: Fate
FATE_KEPT: Fate
FATE_GONE: Fate

class CompleteRequest(_message.Message):
    __slots__ = ("request_id", "prefix", "suffix", "path", "language", "context", "sampling", "session_id", "fresh", "sparse")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prefix: str
    suffix: str
    path: str
    language: str
    context: _containers.RepeatedCompositeFieldContainer[ContextChunk]
    sampling: Sampling
    session_id: str
    fresh: bool
    sparse: Sparse
    def __init__(self, request_id: _Optional[str] = ..., prefix: _Optional[str] = ..., suffix: _Optional[str] = ..., path: _Optional[str] = ..., language: _Optional[str] = ..., context: _Optional[_Iterable[_Union[ContextChunk, _Mapping]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., session_id: _Optional[str] = ..., fresh: _Optional[bool] = ..., sparse: _Optional[_Union[Sparse, str]] = ...) -> None: ...

class ContextChunk(_message.Message):
    __slots__ = ("path", "text")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    path: str
    text: str
    def __init__(self, path: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "max_tokens", "stop")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class CompletionChunk(_message.Message):
    __slots__ = ("text", "finish_reason", "usage", "timings", "source", "request_id", "logit_gap", "typed_chars")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LOGIT_GAP_FIELD_NUMBER: _ClassVar[int]
    TYPED_CHARS_FIELD_NUMBER: _ClassVar[int]
    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    source: Source
    request_id: str
    logit_gap: float
    typed_chars: int
    def __init__(self, text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., source: _Optional[_Union[Source, str]] = ..., request_id: _Optional[str] = ..., logit_gap: _Optional[float] = ..., typed_chars: _Optional[int] = ...) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("seq", "open", "edit", "move", "shown", "accepted", "rejected", "close")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    open: OpenDocument
    edit: EditDocument
    move: MoveCursor
    shown: SuggestionShown
    accepted: SuggestionAccepted
    rejected: SuggestionRejected
    close: CloseDocument
    def __init__(self, seq: _Optional[int] = ..., open: _Optional[_Union[OpenDocument, _Mapping]] = ..., edit: _Optional[_Union[EditDocument, _Mapping]] = ..., move: _Optional[_Union[MoveCursor, _Mapping]] = ..., shown: _Optional[_Union[SuggestionShown, _Mapping]] = ..., accepted: _Optional[_Union[SuggestionAccepted, _Mapping]] = ..., rejected: _Optional[_Union[SuggestionRejected, _Mapping]] = ..., close: _Optional[_Union[CloseDocument, _Mapping]] = ...) -> None: ...

class OpenDocument(_message.Message):
    __slots__ = ("session_id", "path", "language", "context", "sampling", "text", "cursor", "quiet", "sparse")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    QUIET_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    language: str
    context: _containers.RepeatedCompositeFieldContainer[ContextChunk]
    sampling: Sampling
    text: str
    cursor: int
    quiet: bool
    sparse: Sparse
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., language: _Optional[str] = ..., context: _Optional[_Iterable[_Union[ContextChunk, _Mapping]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., text: _Optional[str] = ..., cursor: _Optional[int] = ..., quiet: _Optional[bool] = ..., sparse: _Optional[_Union[Sparse, str]] = ...) -> None: ...

class EditDocument(_message.Message):
    __slots__ = ("patches", "cursor", "quiet", "length")
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    QUIET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    patches: _containers.RepeatedCompositeFieldContainer[Patch]
    cursor: int
    quiet: bool
    length: int
    def __init__(self, patches: _Optional[_Iterable[_Union[Patch, _Mapping]]] = ..., cursor: _Optional[int] = ..., quiet: _Optional[bool] = ..., length: _Optional[int] = ...) -> None: ...

class Patch(_message.Message):
    __slots__ = ("start", "end", "text")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    text: str
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class MoveCursor(_message.Message):
    __slots__ = ("cursor", "quiet")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    QUIET_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    quiet: bool
    def __init__(self, cursor: _Optional[int] = ..., quiet: _Optional[bool] = ...) -> None: ...

class SuggestionShown(_message.Message):
    __slots__ = ("suggestion",)
    SUGGESTION_FIELD_NUMBER: _ClassVar[int]
    suggestion: int
    def __init__(self, suggestion: _Optional[int] = ...) -> None: ...

class SuggestionAccepted(_message.Message):
    __slots__ = ("suggestion", "length")
    SUGGESTION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    suggestion: int
    length: int
    def __init__(self, suggestion: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class SuggestionRejected(_message.Message):
    __slots__ = ("suggestion",)
    SUGGESTION_FIELD_NUMBER: _ClassVar[int]
    suggestion: int
    def __init__(self, suggestion: _Optional[int] = ...) -> None: ...

class CloseDocument(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SessionUpdate(_message.Message):
    __slots__ = ("seq", "suggestion", "problem")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SUGGESTION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    seq: int
    suggestion: CompletionChunk
    problem: Problem
    def __init__(self, seq: _Optional[int] = ..., suggestion: _Optional[_Union[CompletionChunk, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("code", "message", "needs_text", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NEEDS_TEXT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    needs_text: bool
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., needs_text: _Optional[bool] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("fates",)
    FATES_FIELD_NUMBER: _ClassVar[int]
    fates: _containers.RepeatedCompositeFieldContainer[SuggestionFate]
    def __init__(self, fates: _Optional[_Iterable[_Union[SuggestionFate, _Mapping]]] = ...) -> None: ...

class SuggestionFate(_message.Message):
    __slots__ = ("request_id", "fate", "accepted_chars")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FATE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_CHARS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    fate: Fate
    accepted_chars: int
    def __init__(self, request_id: _Optional[str] = ..., fate: _Optional[_Union[Fate, str]] = ..., accepted_chars: _Optional[int] = ...) -> None: ...

class FeedbackReply(_message.Message):
    __slots__ = ("counted", "unknown_request_ids")
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    counted: int
    unknown_request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, counted: _Optional[int] = ..., unknown_request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "reused_tokens", "generated_tokens", "dropped_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    dropped_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., reused_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., dropped_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_s", "first_token_s", "total_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    first_token_s: float
    total_s: float
    def __init__(self, queue_s: _Optional[float] = ..., first_token_s: _Optional[float] = ..., total_s: _Optional[float] = ...) -> None: ...
