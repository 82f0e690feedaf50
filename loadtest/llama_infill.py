"""The dialect of a running llama.cpp server: `POST /infill`, asked as its editor plugins ask it.

The plugins send the 256 lines above the cursor as `input_prefix`, the head of the cursor's line as `prompt`, and what
follows, 64 lines of it, as `input_suffix`, each query on a connection of its own. Three things are not as they do it:
the answer is streamed, so that its first text is seen as early as this product's; it is greedy, so that it can be
repeated; and every session has a slot of its own while the server has enough, where the plugins pin slot 0.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple, Self

import msgspec

from loadtest.dialects import MODEL_SOURCE, OPEN_TIMEOUT_S, Query, Reply, TextSink, ignore_text
from loadtest.errors import DialectError
from loadtest.http_exchange import ExchangeError, HttpServer

LINES_ABOVE = 256
LINES_BELOW = 64
DEFAULT_MAX_TOKENS = 64
"""As this product's server takes when it is not told."""
_SHOWN_CHARS = 80


class Place(NamedTuple):
    """What the plugins send of a file: whole lines above the cursor, the head of its line, what follows."""

    above: str
    head: str
    after: str


class _Timings(msgspec.Struct):
    prompt_n: int | None = None


class _Failure(msgspec.Struct):
    message: str = "no message"


class _Event(msgspec.Struct):
    content: str | None = None
    stop: bool = False
    stop_type: str = ""
    tokens_evaluated: int | None = None
    tokens_predicted: int | None = None
    timings: _Timings | None = None
    error: _Failure | None = None


class _Properties(msgspec.Struct):
    total_slots: int


def place_of(query: Query) -> Place:
    """Cut out of a file what the plugins would send."""
    line_start = start = query.before.rfind("\n") + 1
    for _ in range(LINES_ABOVE):
        if start == 0:
            break
        start = query.before.rfind("\n", 0, start - 1) + 1
    end = 0
    for _ in range(LINES_BELOW):
        end = query.after.find("\n", end) + 1
        if end == 0:
            end = len(query.after)
            break
    return Place(query.before[start:line_start], query.before[line_start:], query.after[:end])


class LlamaInfill:
    """`server` is the server's root, such as http://127.0.0.1:8080."""

    def __init__(self, server: str) -> None:
        """Take an address; raises DialectError."""
        self._name = server
        try:
            self._server = HttpServer(server)
        except ValueError:
            raise DialectError(
                f"the server address is {server!r}; llama-infill expected http://HOST:PORT, such as http://127.0.0.1:8080"
            ) from None
        self._num_slots = 0
        self._slots: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._server.get("/health")
                self._num_slots = msgspec.json.decode(await self._server.get("/props"), type=_Properties).total_slots
        except TimeoutError:
            problem = f"no answer within {OPEN_TIMEOUT_S:g} s"
        except ExchangeError as error:
            problem = str(error)
        except msgspec.DecodeError as error:
            problem = f"its /props are not a llama.cpp server's: {error}"
        else:
            return self
        raise DialectError(f"{self._name}: {problem}; expected a llama.cpp server with a model that can fill in")

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close: every query closes its own connection."""

    async def is_alive(self) -> bool:
        """Ask for its health."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._server.get("/health")
        except (ExchangeError, TimeoutError):
            return False
        return True

    async def complete(self, query: Query, *, deadline_s: float, on_text: TextSink = ignore_text) -> Reply:
        """Ask, and return the answer or its error."""
        began_s = time.perf_counter()
        first_text_s: float | None = None
        texts: list[str] = []
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._server.exchange("POST", "/infill", self._body(query)) as parts,
            ):
                async for event in _read_events(parts):
                    if event.content:
                        if first_text_s is None:
                            first_text_s = time.perf_counter() - began_s
                        texts.append(event.content)
                        on_text(event.content)
                    if event.stop:
                        break
        except (ExchangeError, TimeoutError) as error:
            has_words = isinstance(error, ExchangeError)
            return Reply(
                text="".join(texts),
                first_text_s=first_text_s,
                total_s=time.perf_counter() - began_s,
                error=f"{self._name}: {error if has_words else f'no whole answer within {deadline_s:g} s'}",
                error_kind=error.kind if isinstance(error, ExchangeError) else "deadline",
            )
        return Reply(
            text="".join(texts),
            source=MODEL_SOURCE,
            is_cut_short=event.stop_type == "limit",
            first_text_s=first_text_s,
            total_s=time.perf_counter() - began_s,
            num_prompt_tokens=event.tokens_evaluated,
            num_reused_tokens=_num_reused_tokens(event),
            num_generated_tokens=event.tokens_predicted,
        )

    def _body(self, query: Query) -> bytes:
        place = place_of(query)
        return msgspec.json.encode(
            {
                "input_prefix": place.above,
                "prompt": place.head,
                "input_suffix": place.after,
                "input_extra": [{"filename": chunk.path, "text": chunk.text} for chunk in query.context],
                "n_predict": DEFAULT_MAX_TOKENS if query.max_tokens is None else query.max_tokens,
                "temperature": 0.0,
                "top_k": 1,
                "stream": True,
                "cache_prompt": not query.is_fresh,
                "id_slot": self._slot_of(query.session_id),
            }
        )

    def _slot_of(self, session_id: str) -> int:
        """Return the session's slot; -1 lets the server choose."""
        if not session_id or self._num_slots < 1:
            return -1
        return self._slots.setdefault(session_id, len(self._slots) % self._num_slots)


async def _read_events(parts: AsyncIterator[bytes]) -> AsyncIterator[_Event]:
    """Read the answer's server-sent events up to the one that ends it; raises ExchangeError."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if event := _read_event(line):
                yield event
                if event.stop:
                    return
    if rest.startswith(b"{"):  # an error that came whole instead of a stream
        _read_event(b"data: " + rest)
    raise ExchangeError("lost", "the answer ended before its last event")


def _read_event(line: bytes) -> _Event | None:
    """Read one line: `data:` or `error:` with JSON after it, or empty; raises ExchangeError."""
    name, colon, data = line.strip().partition(b":")
    if not name:  # empty, or a comment
        return None
    try:
        if not colon or name not in (b"data", b"error"):
            raise msgspec.DecodeError("expected `data: {...}`")
        if name == b"error":
            event = _Event(error=msgspec.json.decode(data, type=_Failure))
        else:
            event = msgspec.json.decode(data, type=_Event)
        if event.error is None and event.content is None:
            raise msgspec.DecodeError("expected `content`")
    except msgspec.DecodeError as error:
        shown = line[:_SHOWN_CHARS].decode("utf-8", "replace")
        raise ExchangeError("malformed", f"cannot read the event {shown!r}: {error}") from None
    if event.error is not None:
        raise ExchangeError("failed", f"the server failed: {event.error.message}")
    return event


def _num_reused_tokens(event: _Event) -> int | None:
    """Return the prompt tokens that were not computed.

    `tokens_cached` in the same event is something else: all tokens that the slot holds at the end, new ones included.
    """
    if event.tokens_evaluated is None or event.timings is None or event.timings.prompt_n is None:
        return None
    return max(0, event.tokens_evaluated - event.timings.prompt_n)
