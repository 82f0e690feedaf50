"""A real server on a free loopback port, on a thread with its own event loop, so that tests can stay synchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import msgspec

from cache.completion_cache import CompletionCache
from engine.types import CompletionEngine
from server import app as app_module
from server.app import App
from server.config import ServerConfig
from tests.server.counting_engine import WAIT_S

T = TypeVar("T")


class InProcessServer:
    """Started without signals; `engine=None` leaves it starting until `open_engine`."""

    def __init__(self, engine: CompletionEngine | None, *, cache: CompletionCache | None = None, **config: Any) -> None:
        self._engine, self._cache = engine, cache
        self._config = msgspec.convert(
            {"grpc_port": 0, "drain_s": WAIT_S, "chunk_interval_s": 0.0, "trim": "off", **config}, ServerConfig
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._is_stopped = False
        self.app: App
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self.app, port = self.call(self._start())
        self.address = f"127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_stopped:
            self.call(self.stop(drain_s=0.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop and return its result."""
        return self.begin(work).result(WAIT_S)

    def begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the server's loop beside the test."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def stop(self, *, drain_s: float) -> bool:
        """Drain and stop, on the server's loop."""
        self._is_stopped = True
        return await app_module.stop(self.app, drain_s=drain_s)

    async def open_engine(self, engine: CompletionEngine) -> None:
        """Let a starting server serve, on the server's loop."""
        await app_module.open_engine(self.app, engine)

    async def _start(self) -> tuple[App, int]:
        app = await app_module.build(self._config, cache=self._cache)
        port = await app_module.start(app)
        if self._engine is not None:
            await app_module.open_engine(app, self._engine)
        return app, port
