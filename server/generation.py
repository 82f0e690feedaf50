"""One request under way in the engine, and all that it has written: any number of readers, from any place in the text.

A generation that nobody reads any more is cancelled: at once, or after `linger_s`, in which a newer keystroke may adopt
it. Knows no session and no transport. Used from the event loop's thread only; but the engine's thread appends to
`_outputs`, so that an adopter sees every token, while the loop is woken only at the pace of `server/pace.py`.

Invariants: `_outputs` only grows while it runs, and its last output has `finish` when the engine is done; the engine
holds nothing of a generation that has ended, or that has had no reader for `linger_s`.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from typing import NamedTuple

from engine.types import CompletionEngine, Finish, FinishReason, Output, Request, Usage
from server.pace import Pace, join
from server.trim import TrimmedSink
from server.types import Source, TrimMode


class Answer(NamedTuple):
    """A whole answer, given before or to be kept."""

    text: str
    reason: FinishReason
    logit_gap: float | None = None
    """Smallest distance between the two best scores at any of its tokens; None: unknown."""
    source: Source = "model"
    num_typed: int = 0
    """Characters of it that were typed since it was given, and are not in `text`."""


class Generation:
    """What the engine writes for one request."""

    def __init__(
        self,
        engine: CompletionEngine,
        request_id: str,
        *,
        linger_s: float,
        interval_s: float,
        trim: TrimMode = "off",
    ) -> None:
        """`interval_s` is the least time between two outputs read, as in `Pace`; `trim` says where the text ends."""
        self._trim: TrimMode = trim
        self._engine, self._request_id = engine, request_id
        self._linger_s, self._interval_s = linger_s, interval_s
        self._outputs: list[Output] = []
        self._ends: list[int] = []
        """How many outputs there were each time that the pace handed something on."""
        self._news = asyncio.Event()
        self._submitted: asyncio.Future[None]
        self._num_readers = 0
        self._lingering: asyncio.TimerHandle | None = None
        self.source: Source = "model"
        """Where its text comes from."""
        self.num_typed = 0
        """Characters of an earlier answer that stood before its cursor already."""
        self._keep: Callable[[Answer], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self._trimmed = TrimmedSink(lambda _: None, lambda: None)
        self._is_kept = False
        self.is_superseded = False
        """Cancelled because a newer request of its session took its place."""

    @property
    def text(self) -> str:
        """All that has been written so far."""
        return "".join([output.text for output in self._outputs])

    @property
    def finish(self) -> Finish | None:
        """How it ended; None while it goes on, and when the engine never accepted it."""
        return self._outputs[-1].finish if self._outputs else None

    @property
    def is_running(self) -> bool:
        """Whether more may come."""
        is_refused = self._submitted.done() and self._submitted.exception() is not None
        return self.finish is None and not is_refused and not self.is_superseded

    def on_answer(self, keep: Callable[[Answer], None]) -> None:
        """Hand the whole answer to `keep` when the engine has finished it; on the engine's thread."""
        self._keep = keep

    @property
    def is_cut(self) -> bool:
        """Whether it ended where its text was trimmed, so that more may belong behind it."""
        return self._trimmed.is_cut or (self._is_kept and self._trim != "off")

    @property
    def beyond(self) -> str:
        """What the model wrote behind the end of a text that was trimmed."""
        return self._trimmed.beyond if self._trimmed.is_cut else ""

    def on_end(self, tell: Callable[[], None]) -> None:
        """Call `tell` on the event loop once it has ended, however it does."""
        self._on_end = tell

    def begin(self, prepare: Callable[[], Request | Answer]) -> None:
        """Submit what `prepare` returns, or take the answer that it has; on a thread of its own, since encoding a long
        text takes milliseconds.
        """
        loop = asyncio.get_running_loop()

        def hand_on(_: Output) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens, and the engine must not be disturbed
                loop.call_soon_threadsafe(self._announce, len(self._outputs))

        pace = Pace(hand_on, interval_s=self._interval_s, clock=time.monotonic)

        def take(output: Output) -> None:
            self._outputs.append(output)
            pace.take(output)
            if output.finish is not None and output.finish.state == "finished" and self._keep is not None:
                gaps = [output.logit_gap for output in self._outputs if output.logit_gap is not None]
                self._keep(Answer(text=self.text, reason=output.finish.reason, logit_gap=min(gaps, default=None)))

        def submit() -> None:
            prepared = prepare()
            if isinstance(prepared, Request):
                if self._trim == "off":
                    self._engine.submit(prepared, take)
                    return
                self._trimmed = TrimmedSink(take, lambda: self._engine.cancel(self._request_id))
                self._trimmed.begin(prepared, self._trim)
                self._engine.submit(prepared, self._trimmed.take)
                return
            self._is_kept = True
            self.source, self.num_typed = prepared.source, prepared.num_typed
            finish = Finish(state="finished", reason=prepared.reason, usage=Usage())
            take(Output(request_id=self._request_id, text=prepared.text, finish=finish))

        self._submitted = loop.run_in_executor(None, submit)
        self._submitted.add_done_callback(self._note_submitted)

    async def wait_submitted(self) -> None:
        """Wait until the engine has it; raises what it refuses it with."""
        await asyncio.shield(self._submitted)

    async def read(self, start: int) -> tuple[Output, int]:
        """Return what was written after the first `start` outputs, as one, and how many outputs there were then.

        Waits until the pace has handed on something beyond `start`. Only while `reading`, and not after the end.
        """
        while not self._ends or self._ends[-1] <= start:
            await self._news.wait()
        end = self._ends[bisect_right(self._ends, start)]
        return reduce(join, self._outputs[start:end]), end

    def read_so_far(self) -> tuple[Output | None, int]:
        """Return all that was written so far, as one, None when that is nothing; and how many outputs it was."""
        outputs = self._outputs[:]
        return (reduce(join, outputs) if outputs else None), len(outputs)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Be one of its readers; when the last one leaves before the end, it is cancelled unless another comes soon."""
        self._num_readers += 1
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        try:
            yield
        finally:
            self._num_readers -= 1
            if self._num_readers == 0 and self.finish is not None:
                self._outputs = [reduce(join, self._outputs)]  # nobody reads it part by part any more
            elif self._num_readers == 0 and self.is_running:
                if self._linger_s > 0:
                    self._lingering = asyncio.get_running_loop().call_later(self._linger_s, self.supersede)
                else:
                    self.supersede()

    def supersede(self) -> None:
        """Cancel it, since nobody wants it any more; who still reads it is told so. Harmless when it has ended."""
        if self.is_running:
            self.is_superseded = True
            self._withdraw()

    def forget(self) -> None:
        """Cancel it unless somebody reads it: from now on nobody can find it."""
        self._linger_s = 0.0
        if self._num_readers == 0:
            self.supersede()

    def _note_submitted(self, submitted: "asyncio.Future[None]") -> None:
        if submitted.cancelled() or submitted.exception() is not None:  # asking marks it as retrieved
            self._tell_end()

    def _tell_end(self) -> None:
        if self._on_end is not None:
            self._on_end()
            self._on_end = None

    def _announce(self, end: int) -> None:
        self._ends.append(end)
        self._news.set()
        self._news = asyncio.Event()
        if self.finish is not None:
            self._tell_end()

    def _withdraw(self) -> None:
        """Cancel it; after its submission if that is still under way, since the engine does not know the id yet."""
        if not self._submitted.done():
            self._submitted.add_done_callback(lambda _: self._withdraw())
        elif self._submitted.exception() is None:
            self._engine.cancel(self._request_id)
