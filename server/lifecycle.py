"""Where the server is in its life: starting → serving → draining.

Requests are served only while serving; before and after, `engine` raises with the reason that the client is told.
Knows no transport and loads nothing itself. Invariant: there is an engine exactly from `open` on.
"""

import asyncio
from typing import Literal

from engine.types import CompletionEngine
from server.errors import UnavailableError

State = Literal["starting", "serving", "draining"]


class Lifecycle:
    """The state that admission, health and shutdown share. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self.state: State = "starting"
        self._progress = "nothing loaded yet"
        self._engine: CompletionEngine | None = None
        self.is_broken = asyncio.Event()
        """Set when the engine has ended by itself: the server is of no use any more and should leave."""

    @property
    def engine(self) -> CompletionEngine:
        """The engine to submit to; raises UnavailableError unless the server is serving."""
        if self.state == "draining":
            raise UnavailableError("the server is draining and takes no new requests; try another one, or try later")
        if self._engine is None:
            raise UnavailableError(f"the server is still starting ({self._progress}); try again in a few seconds")
        return self._engine

    @property
    def opened_engine(self) -> CompletionEngine | None:
        """The engine whatever the state, for closing it; None before `open`."""
        return self._engine

    def report_progress(self, progress: str) -> None:
        """Remember how far loading is, for clients that ask too early."""
        self._progress = progress

    def open(self, engine: CompletionEngine) -> None:
        """Start to serve with a loaded and warm engine; ignored when draining has begun."""
        assert self._engine is None, "a server is opened once"
        self._engine = engine
        if self.state == "starting":
            self.state = "serving"

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.state = "draining"
