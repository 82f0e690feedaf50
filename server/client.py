"""The client: `Client` blocks, `AsyncClient` awaits; both raise the errors of `server.errors`.

    with Client("127.0.0.1:50051") as client:
        print(client.complete("def add(a, b):\\n    return ").text)
        for text in client.stream("def add(a, b):\\n    return "):
            print(text, end="")

Closing a stream, or dropping it half read, cancels the request on the server. `client.session(...)` follows an open
document: it sends edits and yields suggestions for the newest state.
"""

import asyncio
import ipaddress
import math
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypedDict, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.types import ContextChunk, SparseMode
from server import wire
from server.editing import Editing, SuggestionUpdate
from server.errors import (
    GRPC_CODES,
    AddressError,
    BusyError,
    CompletionFailedError,
    InvalidRequestError,
    RequestCancelledError,
    RequestFailedError,
    UnavailableError,
)
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.proto.cloudcomplete.v1.completion_pb2_grpc import CompletionServiceStub
from server.types import Completion, CompletionPart, CompletionRequest, SamplingOptions, SuggestionEvent

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0
_ERRORS = {code: error for error, code in GRPC_CODES.items() if issubclass(error, RequestFailedError)}
_SERVING = health_pb2.HealthCheckResponse.SERVING
_RECONNECT_S = 0.05


class RequestOptions(TypedDict, total=False):
    """What a request may say beside the text around the cursor; as in `CompletionRequest` and `SamplingOptions`."""

    path: str
    language: str
    context: Sequence[ContextChunk]
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    max_tokens: int | None
    stop: Sequence[str]
    request_id: str
    session_id: str
    sparse: SparseMode
    is_fresh: bool


class CompletionStream(Iterator[str]):
    """The text of one answer as it grows. The request is sent when the first text is asked for."""

    def __init__(self, start: Callable[[], Any], address: str) -> None:
        """`start` sends the request and returns gRPC's call."""
        self._start, self._address = start, address
        self._lock = threading.Lock()
        self._call: Any = None
        self._is_cancelled = False
        self._completion: Completion | None = None
        self._deltas = self._read()

    def __next__(self) -> str:
        return next(self._deltas)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def completion(self) -> Completion | None:
        """The whole answer, once the stream has been read to its end."""
        return self._completion

    def close(self) -> None:
        """Cancel the request if it still runs; harmless when repeated. From the thread that reads the stream."""
        self._deltas.close()

    def cancel(self) -> None:
        """Cancel the request from any thread; who reads the stream gets RequestCancelledError."""
        with self._lock:
            self._is_cancelled = True
            if self._call is not None:
                self._call.cancel()

    def _read(self) -> Generator[str, None, None]:
        with self._lock:
            if self._is_cancelled:
                raise RequestCancelledError("the request was cancelled before it was sent")
            call = self._call = self._start()
        parts: list[CompletionPart] = []
        try:
            for chunk in call:
                parts.append(wire.decode_part(chunk))
                if wire.is_final(chunk):
                    self._completion = wire.decode_completion(parts, chunk)
                if chunk.text:
                    yield chunk.text
        except grpc.RpcError as error:
            raise _to_error(self._address, error) from None
        finally:
            call.cancel()
        if self._completion is None:
            raise _cut_short(self._address)


class AsyncCompletionStream(AsyncIterator[str]):
    """The text of one answer as it grows. The request is sent when the first text is asked for."""

    def __init__(self, deltas: AsyncGenerator[str, None], ended: list[Completion]) -> None:
        self._deltas = deltas
        self._ended = ended

    async def __anext__(self) -> str:
        return await anext(self._deltas)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def completion(self) -> Completion | None:
        """The whole answer, once the stream has been read to its end."""
        return self._ended[0] if self._ended else None

    async def aclose(self) -> None:
        """Cancel the request if it still runs; harmless when repeated."""
        await self._deltas.aclose()


class ClientSession:
    """One open document: tells the server what happens to it, and iterates over how its suggestions stand.

    Every method but `close` returns the number of the state that it made. Iterating blocks until something comes;
    events may be sent from another thread meanwhile. The iteration ends when the session is closed.
    """

    def __init__(
        self, start: Callable[[Iterator[pb.SessionEvent]], Any], common: CompletionRequest, address: str
    ) -> None:
        """`start` begins gRPC's call with an iterator of events."""
        self._is_closed = False
        self._editing = Editing(common)
        self._address = address
        self._lock = threading.Lock()
        self._events: queue.SimpleQueue[pb.SessionEvent | None] = queue.SimpleQueue()
        self._call = start(iter(self._events.get, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[SuggestionUpdate]:
        return self

    def __next__(self) -> SuggestionUpdate:
        try:
            update = next(self._call)
        except grpc.RpcError as error:
            if self._is_closed:
                raise StopIteration from None
            raise _to_error(self._address, error) from None
        return self._editing.read(update, _to_problem)

    @property
    def text(self) -> str:
        """The document's text."""
        return self._editing.text

    def open(self, text: str, cursor: int, *, is_quiet: bool = False) -> int:
        """Open the document, or open it again; `cursor` is an index. `is_quiet`: ask for no suggestion."""
        return self._send(lambda: self._editing.open(text, cursor, is_quiet=is_quiet))

    def edit(self, start: int, end: int, new: str, *, cursor: int | None = None, is_quiet: bool = False) -> int:
        """Replace `text[start:end]`; the cursor then is behind `new` unless it says otherwise."""
        return self._send(lambda: self._editing.edit(start, end, new, cursor=cursor, is_quiet=is_quiet))

    def move(self, cursor: int, *, is_quiet: bool = False) -> int:
        """Move the cursor."""
        return self._send(lambda: self._editing.move(cursor, is_quiet=is_quiet))

    def shown(self, state: int) -> int:
        """Tell that a state's suggestion was shown."""
        return self._send(lambda: self._editing.shown(state))

    def accepted(self, state: int, text: str = "") -> int:
        """Tell how much of a suggestion was accepted, from its start; empty: all. The text itself comes as an edit."""
        return self._send(lambda: self._editing.accepted(state, text))

    def rejected(self, state: int) -> int:
        """Tell that a suggestion was rejected."""
        return self._send(lambda: self._editing.rejected(state))

    def close(self) -> None:
        """Close the document and the stream; harmless when repeated."""
        self._is_closed = True
        self._events.put(None)
        self._call.cancel()

    def _send(self, make: Callable[[], pb.SessionEvent]) -> int:
        with self._lock:
            event = make()
            self._events.put(event)
            return event.seq


class AsyncClientSession:
    """One open document: tells the server what happens to it, and iterates over how its suggestions stand.

    As `ClientSession`, on an event loop; events may be sent from several tasks while another one iterates.
    """

    def __init__(self, start: Callable[[], Any], common: CompletionRequest, address: str) -> None:
        """`start` begins gRPC's call."""
        self._is_closed = False
        self._editing = Editing(common)
        self._address = address
        self._writing = asyncio.Lock()  # gRPC takes one message at a time; who waits keeps its place
        self._call = start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[SuggestionUpdate]:
        return self

    async def __anext__(self) -> SuggestionUpdate:
        try:
            update = await self._call.read()
        except grpc.RpcError as error:
            raise _to_error(self._address, error) from None
        except asyncio.CancelledError:  # of the call, or of the task that reads
            task = asyncio.current_task()
            if self._is_closed and not (task is not None and task.cancelling()):
                raise StopAsyncIteration from None
            raise
        if update is grpc.aio.EOF:  # type: ignore[attr-defined,unused-ignore]
            raise StopAsyncIteration
        return self._editing.read(update, _to_problem)

    @property
    def text(self) -> str:
        """The document's text."""
        return self._editing.text

    async def open(self, text: str, cursor: int, *, is_quiet: bool = False) -> int:
        """Open the document, or open it again; `cursor` is an index. `is_quiet`: ask for no suggestion."""
        return await self._send(self._editing.open(text, cursor, is_quiet=is_quiet))

    async def edit(self, start: int, end: int, new: str, *, cursor: int | None = None, is_quiet: bool = False) -> int:
        """Replace `text[start:end]`; the cursor then is behind `new` unless it says otherwise."""
        return await self._send(self._editing.edit(start, end, new, cursor=cursor, is_quiet=is_quiet))

    async def move(self, cursor: int, *, is_quiet: bool = False) -> int:
        """Move the cursor."""
        return await self._send(self._editing.move(cursor, is_quiet=is_quiet))

    async def shown(self, state: int) -> int:
        """Tell that a state's suggestion was shown."""
        return await self._send(self._editing.shown(state))

    async def accepted(self, state: int, text: str = "") -> int:
        """Tell how much of a suggestion was accepted, from its start; empty: all. The text itself comes as an edit."""
        return await self._send(self._editing.accepted(state, text))

    async def rejected(self, state: int) -> int:
        """Tell that a suggestion was rejected."""
        return await self._send(self._editing.rejected(state))

    def close(self) -> None:
        """Close the document and the stream; harmless when repeated."""
        self._is_closed = True
        self._call.cancel()

    async def _send(self, event: pb.SessionEvent) -> int:
        try:
            async with self._writing:
                await self._call.write(event)
        except grpc.RpcError as error:
            raise _to_error(self._address, error) from None
        return event.seq


class Client:
    """A connection to one server, for programs that block. May be used from several threads."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tenant: str = "",
        is_background: bool = False,
    ) -> None:
        """Connect lazily to `host:port`. `timeout_s` is for each request; infinity leaves it to the server.

        `tenant` names whose requests these are; `is_background`: nobody waits for them.
        """
        self.address = address
        self._metadata = wire.encode_metadata(tenant, is_background=is_background)
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, _channel_options(address))
        self._completions = CompletionServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests that still run are cancelled."""
        self._channel.close()

    def complete(
        self, before: str, after: str = "", *, timeout_s: float | None = None, **options: Unpack[RequestOptions]
    ) -> Completion:
        """Return the text that belongs between `before` and `after`; raises RequestFailedError."""
        with self.stream(before, after, timeout_s=timeout_s, **options) as stream:
            for _ in stream:
                pass
        assert stream.completion is not None, "a stream that ends without an error has a completion"
        return stream.completion

    def stream(
        self, before: str, after: str = "", *, timeout_s: float | None = None, **options: Unpack[RequestOptions]
    ) -> CompletionStream:
        """Return the same text as it grows; iterating raises RequestFailedError."""
        request = wire.encode_request(_to_request(before, after, options))
        deadline_s = _to_deadline(timeout_s, self._timeout_s)
        return CompletionStream(
            lambda: self._completions.Complete(request, timeout=deadline_s, metadata=self._metadata), self.address
        )

    def session(self, **options: Unpack[RequestOptions]) -> ClientSession:
        """Return a session for one document, to be used in a `with`; `options` hold for all its suggestions."""
        start = partial(self._completions.Session, metadata=self._metadata)
        return ClientSession(start, _to_common(options), self.address)

    def tell(self, request_id: str, event: SuggestionEvent, *, num_accepted: int = 0) -> bool:
        """Tell what became of an answer; False: the server does not know it (any more). Raises RequestFailedError.

        `num_accepted`: characters taken of an accepted one; 0: all.
        """
        request = wire.encode_fate(request_id, event, num_accepted)
        try:
            reply = self._completions.Feedback(request, timeout=_to_deadline(None, self._timeout_s))
        except grpc.RpcError as error:
            raise _to_error(self.address, error) from None
        return bool(reply.counted)

    def is_serving(self, *, timeout_s: float = 1.0) -> bool:
        """Tell whether the server is there, loaded and warm."""
        try:
            reply = self._health.Check(health_pb2.HealthCheckRequest(service=wire.SERVICE_NAME), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(reply.status == _SERVING)

    def wait_until_serving(self, *, timeout_s: float) -> None:
        """Return when the server is loaded and warm; raises UnavailableError when it is not within `timeout_s`."""
        request = health_pb2.HealthCheckRequest(service=wire.SERVICE_NAME)
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            call = self._health.Watch(request, timeout=left_s, wait_for_ready=True)
            with suppress(grpc.RpcError):
                for reply in call:
                    if reply.status == _SERVING:
                        call.cancel()
                        return
            time.sleep(_RECONNECT_S)
        raise _not_serving(self.address, timeout_s)


class AsyncClient:
    """A connection to one server, for programs on an event loop. Used from that loop only."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tenant: str = "",
        is_background: bool = False,
    ) -> None:
        """Connect lazily to `host:port`. `timeout_s` is for each request; infinity leaves it to the server.

        `tenant` names whose requests these are; `is_background`: nobody waits for them.
        """
        self.address = address
        self._metadata = wire.encode_metadata(tenant, is_background=is_background)
        self._timeout_s = timeout_s
        self._options = _channel_options(address)
        self._open_channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; requests that still run are cancelled."""
        if self._open_channel is not None:
            await self._open_channel.close(None)
            self._open_channel = None

    async def complete(
        self, before: str, after: str = "", *, timeout_s: float | None = None, **options: Unpack[RequestOptions]
    ) -> Completion:
        """Return the text that belongs between `before` and `after`; raises RequestFailedError."""
        async with self.stream(before, after, timeout_s=timeout_s, **options) as stream:
            async for _ in stream:
                pass
        assert stream.completion is not None, "a stream that ends without an error has a completion"
        return stream.completion

    def stream(
        self, before: str, after: str = "", *, timeout_s: float | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncCompletionStream:
        """Return the same text as it grows; iterating raises RequestFailedError."""
        request = wire.encode_request(_to_request(before, after, options))
        ended: list[Completion] = []
        return AsyncCompletionStream(self._deltas(request, _to_deadline(timeout_s, self._timeout_s), ended), ended)

    def session(self, **options: Unpack[RequestOptions]) -> AsyncClientSession:
        """Return a session for one document, to be used in an `async with`; `options` hold for all its suggestions."""
        stub = CompletionServiceStub(self._channel())
        start = partial(stub.Session, metadata=self._metadata)
        return AsyncClientSession(start, _to_common(options), self.address)

    async def tell(self, request_id: str, event: SuggestionEvent, *, num_accepted: int = 0) -> bool:
        """Tell what became of an answer; False: the server does not know it (any more). Raises RequestFailedError.

        `num_accepted`: characters taken of an accepted one; 0: all.
        """
        request = wire.encode_fate(request_id, event, num_accepted)
        stub = CompletionServiceStub(self._channel())
        try:
            reply = await stub.Feedback(request, timeout=_to_deadline(None, self._timeout_s))
        except grpc.RpcError as error:
            raise _to_error(self.address, error) from None
        return bool(reply.counted)

    async def is_serving(self, *, timeout_s: float = 1.0) -> bool:
        """Tell whether the server is there, loaded and warm."""
        health = health_pb2_grpc.HealthStub(self._channel())
        try:
            reply = await health.Check(health_pb2.HealthCheckRequest(service=wire.SERVICE_NAME), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(reply.status == _SERVING)

    async def wait_until_serving(self, *, timeout_s: float) -> None:
        """Return when the server is loaded and warm; raises UnavailableError when it is not within `timeout_s`."""
        health = health_pb2_grpc.HealthStub(self._channel())
        request = health_pb2.HealthCheckRequest(service=wire.SERVICE_NAME)
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            call = health.Watch(request, timeout=left_s, wait_for_ready=True)
            with suppress(grpc.RpcError):
                async for reply in call:
                    if reply.status == _SERVING:
                        call.cancel()
                        return
            await asyncio.sleep(_RECONNECT_S)
        raise _not_serving(self.address, timeout_s)

    def _channel(self) -> grpc.aio.Channel:
        """Return the channel, opened at first use because it belongs to the loop that runs then."""
        if self._open_channel is None:
            self._open_channel = grpc.aio.insecure_channel(self.address, self._options)
        return self._open_channel

    async def _deltas(
        self, request: pb.CompleteRequest, deadline_s: float | None, ended: list[Completion]
    ) -> AsyncGenerator[str, None]:
        parts: list[CompletionPart] = []
        call = CompletionServiceStub(self._channel()).Complete(request, timeout=deadline_s, metadata=self._metadata)
        try:
            async for chunk in call:
                parts.append(wire.decode_part(chunk))
                if wire.is_final(chunk):
                    ended.append(wire.decode_completion(parts, chunk))
                if chunk.text:
                    yield chunk.text
        except grpc.RpcError as error:
            raise _to_error(self.address, error) from None
        finally:
            call.cancel()
        if not ended:
            raise _cut_short(self.address)


def _to_request(before: str, after: str, options: RequestOptions) -> CompletionRequest:
    """Raises TypeError for an option that does not exist, as a call with a wrong argument does."""
    given: dict[str, Any] = dict(options)
    if isinstance(given.get("stop"), str):
        raise TypeError(f"stop is {given['stop']!r}; expected a sequence of texts, such as [{given['stop']!r}]")
    for name in ("context", "stop"):
        if name in given:
            given[name] = tuple(given[name])
    sampling = {name: given.pop(name) for name in SamplingOptions.__struct_fields__ if name in given}
    return CompletionRequest(before=before, after=after, sampling=SamplingOptions(**sampling), **given)


def _to_common(options: RequestOptions) -> CompletionRequest:
    """Return what all requests of a session have in common; raises TypeError for what is each request's own."""
    for name in ("request_id", "is_fresh"):
        if name in options:
            raise TypeError(f"{name} is an option of a single request; expected options that hold for a whole session")
    return _to_request("", "", options)


def _to_deadline(timeout_s: float | None, default_s: float) -> float | None:
    chosen_s = default_s if timeout_s is None else timeout_s
    if not chosen_s > 0:
        raise InvalidRequestError(f"the timeout is {chosen_s} s; expected more than 0, or infinity")
    return None if math.isinf(chosen_s) else chosen_s


def _to_error(address: str, error: grpc.RpcError) -> RequestFailedError:
    """Turn a status back into the error that it was on the server."""
    code, details = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        metadata: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type,unused-ignore]
        retry_after_ms = metadata.get(wire.RETRY_AFTER_KEY)
        if retry_after_ms is None:  # not our queue but gRPC's limit: the message itself is too large
            return InvalidRequestError(f"{details}; send the text around the cursor, or raise server.max_message_bytes")
        return BusyError(details, retry_after_s=int(retry_after_ms) / 1000)
    if code is grpc.StatusCode.UNAVAILABLE:
        remedy = "; start a server there (`cloudcomplete serve`) or name another" if "connect" in details else ""
        return UnavailableError(f"{address}: {details}{remedy}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":  # gRPC's own words
        details = f"{address} did not answer in time; set a longer timeout, or ask for less"
    return _ERRORS.get(code.name, CompletionFailedError)(details)


def _to_problem(problem: pb.Problem) -> RequestFailedError:
    """Turn a problem of a session back into the error that it was on the server."""
    name = next((code.name for code in grpc.StatusCode if code.value[0] == problem.code), "INTERNAL")
    if name == "RESOURCE_EXHAUSTED":
        return BusyError(problem.message, retry_after_s=problem.retry_after_ms / 1000)
    return _ERRORS.get(name, CompletionFailedError)(problem.message)


def _cut_short(address: str) -> CompletionFailedError:
    return CompletionFailedError(f"{address}: the answer ended without a finish reason; expected one; try again")


def _not_serving(address: str, timeout_s: float) -> UnavailableError:
    return UnavailableError(
        f"{address} was not serving within {timeout_s:g} s; see the server's output, or wait longer"
    )


def _channel_options(address: str) -> list[tuple[str, int]]:
    """Return the channel's options; raises AddressError for an address that is none."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise AddressError(f"the server address is {address!r}; expected HOST:PORT, such as {DEFAULT_ADDRESS}")
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
    if _is_loopback(host.strip("[]")):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy for the outside world does not reach this machine
    return options


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
