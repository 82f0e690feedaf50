"""A llama.cpp server's double on a loopback port: answers what a test lays down, byte for byte, and notes what came."""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self


def event(content: str, **more: Any) -> bytes:
    """Return one line of a streamed answer, as the server writes it (seen of llama.cpp's build of 0.3.36's package).

    The slot is -1 in every event but the last, whichever was asked for.
    """
    fields = {"index": 0, "content": content, "tokens": [7] if content else [], "stop": False, "id_slot": -1}
    return b"data: " + json.dumps(fields | {"tokens_predicted": 1, "tokens_evaluated": 100} | more).encode() + b"\n\n"


FINAL = event(
    "",
    stop=True,
    id_slot=0,
    model="models/starter.gguf",
    generation_settings={"n_predict": 64, "stream": True},
    prompt="<|fim_prefix|>…",
    has_new_line=True,
    truncated=False,
    stop_type="eos",
    stopping_word="",
    tokens_predicted=5,
    tokens_cached=104,
    timings={"cache_n": 88, "prompt_n": 12, "prompt_ms": 7.4, "predicted_n": 5, "predicted_ms": 10.5},
)
PING = b":\n\n"
"""What the server sends while a client waits long."""


def streamed(*parts: bytes) -> list[bytes]:
    """Return a whole HTTP answer of these parts, each one sent on its own."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]


def whole(status: str, body: bytes) -> list[bytes]:
    return [f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body]


class LlamaDouble:
    """`pages` are the answers by path. After the page named by `hangs` the connection stays open until the client ends
    it, which `is_ended_by_client` tells."""

    def __init__(self, infill: Sequence[bytes] = (), *, hangs: str = "", **pages: Sequence[bytes]) -> None:
        self.pages: dict[str, Sequence[bytes]] = {
            "infill": infill,
            "health": whole("200 OK", b'{"status":"ok"}'),
            "props": whole("200 OK", b'{"total_slots": 2}'),
            **pages,
        }
        self.hangs = hangs
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.is_ended_by_client = asyncio.Event()
        self.address = ""
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # for transports to close

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._handlers.add(asyncio.ensure_future(self._handle(reader, writer)))

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        page = path.rpartition("/")[2]
        self.paths.append(path)
        lengths = [line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0])) if lengths else b""
        if page == "infill":
            self.bodies.append(json.loads(body))
        try:
            for part in self.answer(page):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if self.hangs == page:
                await reader.read()
                self.is_ended_by_client.set()
        except ConnectionError:
            self.is_ended_by_client.set()
        finally:
            await self.end(writer)

    def answer(self, page: str) -> Sequence[bytes]:
        """Return what is sent for a page, part by part."""
        return self.pages[page]

    async def end(self, writer: asyncio.StreamWriter) -> None:
        """End a connection as a server does that has said everything."""
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class ResettingDouble(LlamaDouble):
    """Ends every infill connection as the system does whose process has died."""

    async def end(self, writer: asyncio.StreamWriter) -> None:
        if self.bodies:
            await asyncio.sleep(0.05)  # so that the client has read what there was
            without_farewell = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, without_farewell)
        await super().end(writer)
