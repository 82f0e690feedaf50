"""The use case: one request in, its outputs out, and nothing left behind. Knows no transport.

Every admitted request ends in exactly one way: its outputs end with a finish, or an error is raised; in either case the
engine holds nothing of it afterwards. The engine calls back on its own thread; here the outputs are carried over to the
event loop.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress

import msgspec

from engine.errors import EngineClosedError
from engine.types import CompletionEngine, Output
from server.admission import Admission
from server.config import ServerConfig
from server.errors import CompletionFailedError, DeadlineError, RequestCancelledError, UnavailableError
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.pace import Pace
from server.prompt import build_request
from server.types import CompletionRequest


class Completer:
    """Serves requests, many at once. Used from the event loop's thread only."""

    def __init__(self, config: ServerConfig, lifecycle: Lifecycle, admission: Admission, metrics: Metrics) -> None:
        self._config = config
        self._lifecycle = lifecycle
        self._admission = admission
        self._metrics = metrics
        self._serial = itertools.count()

    async def complete(self, request: CompletionRequest, *, deadline_s: float | None) -> AsyncGenerator[Output, None]:
        """Yield the outputs of a request in order; the last one has `finish`. `deadline_s`: seconds left, or None.

        Close the generator (`contextlib.aclosing`) to cancel the request. Raises the errors of `server.errors` below
        RequestFailedError, and those of the engine's `submit`.
        """
        engine = self._lifecycle.engine
        sampling = self._admission.check(request, deadline_s=deadline_s)
        allowed_s = self._config.default_deadline_s if deadline_s is None else deadline_s
        name = request.request_id or uuid.uuid4().hex
        engine_id = f"{name}#{next(self._serial)}"  # two clients may choose the same name; the engine's ids are unique
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        deadline = arrived + allowed_s
        outputs: asyncio.Queue[Output] = asyncio.Queue()

        def hand_on(output: Output) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens, and the engine must not be disturbed
                loop.call_soon_threadsafe(outputs.put_nowait, output)

        interval_s = 0.0 if request.is_fresh else self._config.chunk_interval_s  # an oracle is asked for every token
        pace = Pace(hand_on, interval_s=interval_s, clock=time.monotonic)

        def submit() -> None:
            sent = build_request(request, request_id=engine_id, sampling=sampling, config=self._config)
            engine.submit(sent, pace.take)

        with self._admission.place():
            is_begun = is_ended = False
            submitted = loop.run_in_executor(None, submit)  # encoding a long text takes milliseconds
            try:
                await self._wait_for(submitted)
                while not is_ended:
                    try:
                        async with asyncio.timeout_at(deadline):
                            output = await outputs.get()
                    except TimeoutError:
                        raise DeadlineError(
                            f"the request did not end within {allowed_s:.3g} s; set a longer timeout, or ask for less"
                        ) from None
                    is_ended = output.finish is not None
                    self._raise_unless_answer(output)
                    if not is_begun:
                        self._metrics.observe_first_token(loop.time() - arrived)
                        is_begun = True
                    yield msgspec.structs.replace(output, request_id=name)
            finally:
                if not is_ended:
                    _withdraw(engine, engine_id, submitted)

    async def _wait_for(self, submitted: asyncio.Future[None]) -> None:
        """Wait until the engine has a request; raises what it refuses it with."""
        try:
            await asyncio.shield(submitted)
        except EngineClosedError:
            if self._lifecycle.state == "serving":  # nobody closed it
                self._lifecycle.is_broken.set()
            raise

    def _raise_unless_answer(self, output: Output) -> None:
        """Turn an end that is no answer into its error."""
        if output.finish is None or output.finish.state == "finished":
            return
        if self._lifecycle.state == "draining":
            raise UnavailableError(
                f"the server stopped after draining for {self._config.drain_s:g} s, before the request ended; "
                "send it to another server, or raise server.drain_s"
            )
        if output.finish.state == "cancelled":
            raise RequestCancelledError("the engine cancelled the request; send it again if its answer is still wanted")
        raise CompletionFailedError(f"the engine failed the request: {output.finish.error or 'it gave no reason'}")


def _withdraw(engine: CompletionEngine, engine_id: str, submitted: asyncio.Future[None]) -> None:
    """Cancel a request; after its submission if that is still under way, since the engine does not know the id yet."""
    if not submitted.done():
        submitted.add_done_callback(lambda _: _withdraw(engine, engine_id, submitted))
    elif submitted.exception() is None:
        engine.cancel(engine_id)
