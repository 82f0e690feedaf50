"""One HTTP exchange: a request, and its answer's body as it comes. Knows nothing of what is in them.

`h11` reads the protocol and `asyncio` the socket. For each part of a streamed answer that is half the CPU of a whole
HTTP client; the server under test often shares the machine with the one who measures it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import h11

from loadtest.dialects import ErrorKind

_READ_BYTES = 1 << 16
_OK = 200
_UNAVAILABLE = (429, 503)
_SHOWN_CHARS = 200


class ExchangeError(Exception):
    """The exchange brought no answer, or only a part of one. `kind` as a `Reply` has it."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


class HttpServer:
    """Where to send requests: `http://HOST:PORT`, perhaps with a path that all of them begin with."""

    def __init__(self, address: str) -> None:
        """Take an address; raises ValueError for one that is none."""
        parts = urlsplit(address)
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(address)
        self._host = parts.hostname
        self._port = parts.port or 80
        self._authority = parts.netloc
        self._root = parts.path.rstrip("/")

    async def get(self, path: str) -> bytes:
        """Return the body that a path has; raises ExchangeError."""
        async with self.exchange("GET", path) as parts:
            return b"".join([part async for part in parts])

    @asynccontextmanager
    async def exchange(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request and give the parts of its answer's body; raises ExchangeError, also while they are read.

        Leaving the block, at whatever point, closes the connection.
        """
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            raise ExchangeError("lost", f"cannot connect: {error.strerror or error}") from None
        try:
            protocol = h11.Connection(h11.CLIENT)
            writer.write(self._encode(protocol, method, path, body))
            answer = _read_answer(reader, protocol)
            await _check_status(answer)
            yield _read_body(answer)
        except OSError as error:
            raise ExchangeError("lost", f"the connection broke: {error.strerror or error}") from None
        finally:
            writer.transport.abort()

    def _encode(self, protocol: h11.Connection, method: str, path: str, body: bytes) -> bytes:
        headers = [("Host", self._authority), ("Connection", "close"), ("Content-Length", str(len(body)))]
        if body:
            headers.append(("Content-Type", "application/json"))
        events: list[h11.Event] = [h11.Request(method=method, target=self._root + path, headers=headers)]
        if body:
            events.append(h11.Data(data=body))
        events.append(h11.EndOfMessage())
        return b"".join(protocol.send(event) or b"" for event in events)


async def _read_answer(reader: asyncio.StreamReader, protocol: h11.Connection) -> AsyncIterator[h11.Event]:
    is_closed = False
    while True:
        try:
            event = protocol.next_event()
        except h11.RemoteProtocolError as error:
            if is_closed:
                raise ExchangeError("lost", "the connection closed before the answer was whole") from None
            raise ExchangeError("malformed", f"the answer is not HTTP: {error}") from None
        if event is h11.NEED_DATA:
            data = await reader.read(_READ_BYTES)
            is_closed = not data
            protocol.receive_data(data)
            continue
        assert isinstance(event, h11.Event), "a client's connection is read only up to the end of its answer"
        yield event
        if isinstance(event, h11.EndOfMessage):
            return


async def _check_status(answer: AsyncIterator[h11.Event]) -> None:
    async for event in answer:
        if isinstance(event, h11.Response):
            if event.status_code == _OK:
                return
            said = b"".join([part async for part in _read_body(answer)]).decode("utf-8", "replace").strip()
            kind: ErrorKind = "busy" if event.status_code in _UNAVAILABLE else "refused"
            raise ExchangeError(kind, f"HTTP status {event.status_code}: {said[:_SHOWN_CHARS] or 'no reason given'}")
    raise AssertionError("an answer has a status before it ends")


async def _read_body(answer: AsyncIterator[h11.Event]) -> AsyncIterator[bytes]:
    async for event in answer:
        if isinstance(event, h11.Data):
            yield bytes(event.data)
