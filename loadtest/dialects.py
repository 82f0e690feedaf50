"""Dialects: the words in which a server under test is asked. A `Query` goes in, a `Reply` comes out.

    async with open_dialect("grpc", "127.0.0.1:50051") as dialect:
        reply = await dialect.complete(Query(before="def add(a, b):\\n    return "), deadline_s=5.0)

One program asks different systems the same, so that their figures can stand side by side. A query knows no server's
words; a dialect knows no typing and no scoring. What goes wrong with one query is a `Reply` with an `error`, so that it
is counted; only what makes every query pointless is raised.
"""

from collections.abc import Callable
from typing import Literal, Protocol, Self

import msgspec

from engine.types import ContextChunk
from loadtest.errors import DialectError

DIALECTS = ("grpc", "llama-infill")
MODEL_SOURCE = "model"
"""`Reply.source` of what a model has written for this query."""
OPEN_TIMEOUT_S = 5.0
"""Seconds that a dialect waits for its server when it is opened."""

ErrorKind = Literal["lost", "busy", "deadline", "refused", "malformed", "failed"]
"""lost: the server is not there; busy: it has no room; deadline: no answer in time; refused: it will not answer this
query; malformed: its answer breaks the dialect's rules; failed: anything else, by its own account."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What any server is asked: the text that belongs between `before` and `after`. Always greedy."""

    before: str
    """Text left of the cursor."""
    after: str = ""
    """Text right of the cursor."""
    path: str = ""
    """Path of the file within its project. Empty: unknown."""
    language: str = ""
    """Editor's language id, where the path is empty."""
    context: tuple[ContextChunk, ...] = ()
    """Text of other places of the project, the most useful last."""
    max_tokens: int | None = None
    """Most tokens to generate; None takes the server's default."""
    session_id: str = ""
    """The same for all queries of one user in one file."""
    is_fresh: bool = False
    """Have the model compute everything anew, whatever is kept from earlier queries."""


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer's text as it came, with how sure the model was of it."""

    num_chars: int
    """Characters of text in it; 0 for the end alone."""
    logit_gap: float | None
    """Smallest distance between the two best logits at any of its tokens; None: unknown, or no token."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, or why there is none. Seconds count from the call of `complete`."""

    text: str = ""
    """The whole answer; with an error, what had come before it."""
    source: str = ""
    """Where the text came from, in the server's word. Empty: unknown."""
    is_from_model: bool = True
    """Whether a model ran for this query."""
    is_cut_short: bool = False
    """Whether the limit of tokens ended the text, rather than the model."""
    num_typed: int = 0
    """So many characters before the cursor are the beginning of an earlier suggestion, whose rest this is."""
    first_text_s: float | None = None
    """When the first text came; None when none did."""
    total_s: float = 0.0
    """When the answer had ended."""
    num_prompt_tokens: int | None = None
    """Tokens of the prompt; None, here and below: the server does not say."""
    num_reused_tokens: int | None = None
    """Prompt tokens that did not have to be computed."""
    num_generated_tokens: int | None = None
    parts: tuple[TextPart, ...] = ()
    """The text as it came, where the server tells how sure the model was; else empty."""
    error: str | None = None
    """What went wrong; None for an answer."""
    error_kind: ErrorKind | None = None
    """The same in one word, to count by."""

    @property
    def num_computed_tokens(self) -> int | None:
        """Tokens the model ran over for this answer: of the prompt, and generated. None when the server is silent."""
        if not self.is_from_model:
            return 0
        if self.num_prompt_tokens is None or self.num_reused_tokens is None or self.num_generated_tokens is None:
            return None
        return self.num_prompt_tokens - self.num_reused_tokens + self.num_generated_tokens


TextSink = Callable[[str], None]
"""Receives the text of one answer as it comes, in order; must not block."""


def ignore_text(_: str) -> None:
    """Be the sink of whoever only wants the whole answer."""


class Dialect(Protocol):
    """A connection to a server under test, used on one event loop. Entering it connects; leaving it closes."""

    async def __aenter__(self) -> Self:
        """Connect; raises DialectError when no server that speaks the dialect is there."""

    async def __aexit__(self, *_: object) -> None:
        """Close the connection; what is still open ends."""

    async def complete(self, query: Query, *, deadline_s: float, on_text: TextSink = ignore_text) -> Reply:
        """Ask, and return the answer or its error. Cancelling the task ends the request on the server too."""

    async def is_alive(self) -> bool:
        """Tell whether the server answers at all, within a few seconds; asks nothing of its model."""


def open_dialect(name: str, server: str, *, has_client_cache: bool = False) -> Dialect:
    """Return a dialect, not yet connected; `has_client_cache` puts the cache of an editor plugin in front of it.

    Raises DialectError for an unknown name, DialectError or AddressError for an address that is none.
    """
    dialect: Dialect
    if name == "grpc":
        from loadtest.grpc_dialect import GrpcDialect

        dialect = GrpcDialect(server)
    elif name == "llama-infill":
        from loadtest.llama_infill import LlamaInfill

        dialect = LlamaInfill(server)
    else:
        raise DialectError(f"{name!r} is no dialect; expected one of: {', '.join(DIALECTS)}")
    if has_client_cache:
        from loadtest.plugin_cache import PluginCache

        dialect = PluginCache(dialect)
    return dialect
