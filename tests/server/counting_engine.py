"""An engine whose answers can be computed by hand: it counts on from the last number before the cursor.

After "x = [7, 8" it writes "9 ", "10 ", "11 " (or with another separator), one a step, until `max_tokens` or a stop
text. A token is a character of the prompt, or a number of the answer. It runs on a thread of its own, as the real one
does; with `is_gated=True` it makes a step only for each `allow()`, so that tests decide what has happened when.
"""

import re
import threading
from collections import deque
from collections.abc import Callable

from engine.errors import EngineClosedError, QueueFullError, RequestError
from engine.types import EngineStats, Finish, FinishReason, FinishState, Output, Request, Sink, Usage

WAIT_S = 10.0
"""Most seconds that a test waits for something that should happen at once."""


def expected_text(before: str, num_tokens: int, separator: str = " ") -> str:
    """Return what the engine writes, computed independently of its loop."""
    numbers = re.findall(r"\d+", before)
    first = int(numbers[-1]) + 1 if numbers else 0
    return "".join(f"{n}{separator}" for n in range(first, first + num_tokens))


class _Sequence:
    def __init__(self, request: Request, sink: Sink, num_reused_tokens: int) -> None:
        self.request = request
        self.sink = sink
        self.num_reused_tokens = num_reused_tokens
        self.num_tokens = 0
        self.text = ""


class CountingEngine:
    """A `CompletionEngine`. `seen` has every request submitted, `ends` how each one that ended did so."""

    def __init__(
        self, *, num_slots: int = 4, max_waiting: int = 8, is_gated: bool = False, separator: str = " "
    ) -> None:
        self.seen: list[Request] = []
        self.ends: dict[str, FinishState] = {}
        self.is_closed = False
        self.fails_with = ""
        """When set, the next step fails every running sequence with this message."""
        self._separator = separator
        self._num_slots = num_slots
        self._max_waiting = max_waiting
        self._is_gated = is_gated
        self._num_allowed = 0
        self._running: dict[str, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._last_prompt = ""
        self._num_tokens = {"prompt": 0, "reused": 0, "generated": 0, "computed": 0}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="counting-engine", daemon=True)
        self._thread.start()

    identity = "counting"

    @property
    def is_alive(self) -> bool:
        return not self.is_closed

    def submit(self, request: Request, sink: Sink) -> None:
        with self._changed:
            if self.is_closed:
                raise EngineClosedError("the engine is closed")
            if "unservable" in request.before:
                raise RequestError("the prompt cannot be served")
            if len(self._running) >= self._num_slots and len(self._waiting) >= self._max_waiting:
                raise QueueFullError("the engine's queue is full", retry_after_s=0.25)
            assert request.request_id not in self._running, "ids are unique"
            prompt = request.before
            num_reused = next(
                (i for i, (a, b) in enumerate(zip(prompt, self._last_prompt, strict=False)) if a != b), None
            )
            if num_reused is None:
                num_reused = min(len(prompt), len(self._last_prompt))
            self._last_prompt = prompt
            self.seen.append(request)
            self._waiting.append(_Sequence(request, sink, num_reused))
            self._num_tokens["computed"] += len(prompt) - num_reused
            self._admit()
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        with self._changed:
            for sequence in [*self._running.values(), *self._waiting]:
                if sequence.request.request_id == request_id:
                    self._end(sequence, "cancelled", "cancelled")
            self._admit()
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        with self._changed:
            states = list(self.ends.values())
            return EngineStats(
                num_slots=self._num_slots,
                num_running=len(self._running),
                num_waiting=len(self._waiting),
                kv_usage=len(self._running) / self._num_slots,
                num_finished=states.count("finished"),
                num_cancelled=states.count("cancelled"),
                num_failed=states.count("failed"),
                num_prompt_tokens=self._num_tokens["prompt"],
                num_reused_tokens=self._num_tokens["reused"],
                num_generated_tokens=self._num_tokens["generated"],
                num_computed_tokens=self._num_tokens["computed"],
            )

    def close(self, *, timeout_s: float) -> None:
        with self._changed:
            self.is_closed = True
            self._changed.wait_for(lambda: not self._running and not self._waiting, timeout_s)
            for sequence in [*self._running.values(), *self._waiting]:
                self._end(sequence, "failed", "failed", error="the engine was closed")
            self._changed.notify_all()
        self._thread.join(WAIT_S)

    def allow(self, num_steps: int = 1) -> None:
        """Let a gated engine make so many more steps."""
        with self._changed:
            self._num_allowed += num_steps
            self._changed.notify_all()

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        """Wait until something holds of the engine; fails the test when it does not come to be."""
        with self._changed:
            assert self._changed.wait_for(is_true, WAIT_S), "waited in vain"

    def wait_until_empty(self) -> None:
        """Wait until nothing runs and nothing waits."""
        self.wait_for(lambda: not self._running and not self._waiting)

    def wait_until_running(self, num_sequences: int) -> None:
        """Wait until so many sequences run."""
        self.wait_for(lambda: len(self._running) == num_sequences)

    def _run(self) -> None:
        with self._changed:
            while True:
                self._changed.wait_for(self._can_step)
                if self.is_closed and not self._running:
                    return
                if self._is_gated:
                    self._num_allowed -= 1
                self._step()
                self._admit()
                self._changed.notify_all()

    def _can_step(self) -> bool:
        if self.is_closed and not self._running and not self._waiting:
            return True
        return bool(self._running) and (not self._is_gated or self._num_allowed > 0)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._num_slots:
            sequence = self._waiting.popleft()
            self._running[sequence.request.request_id] = sequence

    def _step(self) -> None:
        failure, self.fails_with = self.fails_with, ""
        for sequence in list(self._running.values()):
            if failure:
                self._end(sequence, "failed", "failed", error=failure)
                continue
            request = sequence.request
            whole = expected_text(request.before, sequence.num_tokens + 1, self._separator)
            new = whole[len(sequence.text) :]
            sequence.num_tokens += 1
            self._num_tokens["computed"] += 1
            ends = [at for stop in request.sampling.stop if (at := whole.find(stop)) >= 0]
            if ends:
                self._end(sequence, "finished", "stop", text=whole[len(sequence.text) : min(ends)])
            elif sequence.num_tokens == request.sampling.max_tokens:
                self._end(sequence, "finished", "length", text=new)
            else:
                sequence.text = whole
                sequence.sink(Output(request_id=request.request_id, text=new))

    def _end(
        self, sequence: _Sequence, state: FinishState, reason: FinishReason, *, text: str = "", error: str = ""
    ) -> None:
        request = sequence.request
        if self._running.pop(request.request_id, None) is None:
            self._waiting.remove(sequence)
        self.ends[request.request_id] = state
        usage = Usage(
            num_prompt_tokens=len(request.before) + len(request.after),
            num_reused_tokens=sequence.num_reused_tokens,
            num_generated_tokens=sequence.num_tokens,
            queue_s=0.25,
            first_token_s=0.5,
            total_s=0.75,
        )
        self._num_tokens["prompt"] += usage.num_prompt_tokens
        self._num_tokens["reused"] += usage.num_reused_tokens
        self._num_tokens["generated"] += usage.num_generated_tokens
        finish = Finish(state=state, reason=reason, usage=usage, error=error)
        sequence.sink(Output(request_id=request.request_id, text=text, finish=finish))
