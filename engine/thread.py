"""The thread that steps an engine. It is the only one that touches the device and the scheduler."""

import logging
import threading
import time

from engine.engine import Engine
from engine.types import EngineStats, Request, Sink

logger = logging.getLogger(__name__)


class EngineThread:
    """A running engine: `submit`, `cancel` and `stats` from any thread (`types.CompletionEngine`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = threading.Event()
        self._is_closing = False
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False once the thread has ended, by `close` or because of a defect."""
        return self._thread.is_alive()

    @property
    def identity(self) -> str:
        """See `Engine.identity`."""
        return self._engine.identity

    def submit(self, request: Request, sink: Sink) -> None:
        """See `Engine.submit`."""
        self._engine.submit(request, sink)
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        self._engine.cancel(request_id)
        self._wake.set()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._engine.stats()

    def close(self, *, timeout_s: float) -> None:
        """Refuse new requests, let accepted ones end, fail what is left after `timeout_s`, stop. Twice is harmless."""
        self._engine.refuse_new()
        self._deadline = time.monotonic() + timeout_s
        self._is_closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                if self._is_closing and (not self._engine.has_work() or time.monotonic() >= self._deadline):
                    self._engine.fail_all("the engine stopped before the request was done; send it again")
                    return
                if self._engine.has_work():
                    self._engine.step()
                else:
                    self._wake.wait()
                    self._wake.clear()
        except Exception:
            logger.exception("the engine's thread ended because of a defect")
            self._engine.refuse_new()
            self._engine.fail_all("the engine failed; see the server's log")
