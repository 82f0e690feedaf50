"""The engine: read this first.

`submit` takes a request from any thread, turns its text into a prompt and queues it. `step`, called again and again
by one thread, admits what waits, runs one round on the device and hands new text to each request's sink. `cancel`
takes effect at the next step. The life of a request:

    submit → [inbox] → scheduler.plan → runner.run → detokenizer.push → sink, until finished, cancelled or failed

Knows no network and no editor.
"""

import threading
from collections import deque

from engine.detokenizer import Detokenizer
from engine.errors import EngineClosedError, QueueFullError, RequestError, StepError
from engine.fim import FimTemplate, build_prompt
from engine.plan import EnginePlan
from engine.runner import Choice, Row, Runner
from engine.scheduler import Ended, Scheduler, Sequence
from engine.tokenizer import Tokenizer
from engine.types import EngineStats, Finish, Output, Request, Sink


class Engine:
    """Continuous batching of completions over one runner."""

    def __init__(
        self, *, runner: Runner, tokenizer: Tokenizer, template: FimTemplate, plan: EnginePlan, max_waiting: int
    ) -> None:
        self._runner, self._tokenizer, self._template = runner, tokenizer, template
        self._plan, self._max_waiting = plan, max_waiting
        self._scheduler = Scheduler(num_slots=plan.num_slots, chunk_tokens=plan.chunk_buckets[-1])
        self._stop_ids = frozenset(template.stop_ids)
        self._lock = threading.Lock()
        # Guarded by the lock: what other threads hand to the stepping thread.
        self._inbox: deque[Sequence] = deque()
        self._cancels: set[str] = set()
        self._request_ids: set[str] = set()
        self._is_closed = False
        # Owned by the stepping thread.
        self._counts = dict.fromkeys(
            ("finished", "cancelled", "failed", "prompt_tokens", "reused_tokens", "generated_tokens", "steps"), 0
        )
        self._num_rejected = 0
        self._mean_service_s = 0.1

    # --- from any thread -------------------------------------------------------------------------------------------

    def submit(self, request: Request, sink: Sink) -> None:
        """Accept a request, or raise RequestError, QueueFullError or EngineClosedError and touch nothing."""
        sequence = self._make_sequence(request, sink)
        with self._lock:
            if self._is_closed:
                raise EngineClosedError(
                    "the engine is stopping; send the request to another replica or try again later"
                )
            if request.request_id in self._request_ids:
                raise RequestError(
                    f"request_id {request.request_id!r} is in use; expected one that no open request has"
                )
            waiting = len(self._inbox) + self._scheduler.num_waiting
            free = self._plan.num_slots - self._scheduler.num_running
            if waiting >= self._max_waiting + free:
                self._num_rejected += 1
                rounds = 1 + waiting / self._plan.num_slots
                raise QueueFullError(
                    f"the queue is full: {waiting} requests wait and at most {self._max_waiting} may; try again later",
                    retry_after_s=round(rounds * self._mean_service_s, 3),
                )
            self._inbox.append(sequence)
            self._request_ids.add(request.request_id)

    def cancel(self, request_id: str) -> None:
        """End a request at the next step; ids that are unknown or already ended are ignored."""
        with self._lock:
            if request_id in self._request_ids:
                self._cancels.add(request_id)

    def stats(self) -> EngineStats:
        """Return counters and gauges; a step may be half counted."""
        counts = {f"num_{name}": value for name, value in self._counts.items()}
        running, slots = self._scheduler.num_running, self._plan.num_slots
        return EngineStats(
            num_slots=slots,
            num_running=running,
            num_waiting=len(self._inbox) + self._scheduler.num_waiting,
            kv_usage=running / slots,
            num_rejected=self._num_rejected,
            num_recompiles=self._runner.num_recompiles,
            **counts,
        )

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has in this engine's vocabulary."""
        return len(self._tokenizer.encode(text))

    def has_work(self) -> bool:
        """Tell whether a step would do anything."""
        return bool(self._inbox or self._scheduler.num_running or self._scheduler.num_waiting)

    def refuse_new(self) -> None:
        """From now on `submit` raises EngineClosedError; what was accepted goes on."""
        with self._lock:
            self._is_closed = True

    # --- on the stepping thread ------------------------------------------------------------------------------------

    def step(self) -> None:
        """Take in what was submitted and cancelled, run one round, hand out its text.

        If the device fails, the sequences that ran fail with its message, and the engine goes on with empty KV.
        """
        with self._lock:
            arrived, cancels = list(self._inbox), self._cancels
            self._inbox.clear()
            self._cancels = set()
            for sequence in arrived:
                self._scheduler.submit(sequence)
        for request_id in cancels:
            if ended := self._scheduler.cancel(request_id):
                self._emit_end(ended)
        plan = self._scheduler.plan()
        try:
            for sequence, num_tokens in plan.prefill:
                [choice] = self._runner.run([self._row(sequence, num_tokens)])
                sequence.num_computed += num_tokens
                if sequence.phase == "decode":
                    self._advance(sequence, choice)
            if plan.decode:
                choices = self._runner.run([self._row(sequence, 1) for sequence in plan.decode])
                for sequence, choice in zip(plan.decode, choices, strict=True):
                    sequence.num_computed += 1
                    self._advance(sequence, choice)
        except StepError as error:
            for ended in self._scheduler.fail_running(str(error)):
                self._emit_end(ended)
            self._runner.reset()
        if plan.prefill or plan.decode:
            self._counts["steps"] += 1

    def fail_all(self, reason: str) -> None:
        """End everything that is left as failed."""
        with self._lock:
            arrived = list(self._inbox)
            self._inbox.clear()
        for sequence in arrived:
            self._scheduler.submit(sequence)
        for ended in self._scheduler.end_all("failed", "failed", reason):
            self._emit_end(ended)

    def check_integrity(self) -> None:
        """Assert the scheduler's invariants."""
        self._scheduler.check_integrity()

    def _make_sequence(self, request: Request, sink: Sink) -> Sequence:
        sampling = request.sampling
        if not 0 <= sampling.max_tokens < self._plan.max_context:
            raise RequestError(
                f"max_tokens is {sampling.max_tokens}; expected 0 to {self._plan.max_context - 1}, "
                f"since the context holds {self._plan.max_context} tokens"
            )
        prompt = build_prompt(
            request,
            self._tokenizer,
            self._template,
            max_prompt_tokens=self._plan.max_context - max(1, sampling.max_tokens),
            heals=self._plan.token_healing,
        )
        return Sequence(
            request=request,
            sink=sink,
            prompt=prompt.tokens,
            heal=prompt.heal,
            num_dropped=prompt.num_dropped_tokens,
            max_tokens=sampling.max_tokens,
            detokenizer=Detokenizer(self._tokenizer, heal=prompt.heal, stop=sampling.stop),
        )

    def _row(self, sequence: Sequence, num_tokens: int) -> Row:
        start = sequence.num_computed
        tokens = sequence.prompt[start : start + num_tokens] if sequence.phase == "prefill" else sequence.generated[-1:]
        allowed = self._tokenizer.tokens_for_bytes(sequence.heal) if sequence.heal else None
        return Row(sequence.slot, start, tokens, sequence.request.sampling, len(sequence.generated), allowed)

    def _advance(self, sequence: Sequence, choice: Choice) -> None:
        """Take one new token into a sequence and its text to the sink."""
        if sequence.max_tokens == 0:  # a warming request: only its KV was wanted
            self._emit_end(self._scheduler.end(sequence, "finished", "length"))
            return
        token = choice.token
        sequence.append(token, choice.logit_gap)
        if token in self._stop_ids:
            self._emit_end(self._scheduler.end(sequence, "finished", "stop"), text=sequence.detokenizer.flush())
            return
        if sequence.heal:
            num_written = len(self._tokenizer.token_bytes(token))
            sequence.num_healing += num_written <= len(sequence.heal)
            sequence.heal = sequence.heal[num_written:]
        text = sequence.detokenizer.push(token)
        if sequence.detokenizer.is_stopped:
            self._emit_end(self._scheduler.end(sequence, "finished", "stop"), text=text)
        elif self._is_long_enough(sequence):
            self._emit_end(
                self._scheduler.end(sequence, "finished", "length"), text=text + sequence.detokenizer.flush()
            )
        elif text:
            sequence.sink(
                Output(request_id=sequence.request.request_id, text=text, logit_gap=sequence.take_logit_gap())
            )

    def _is_long_enough(self, sequence: Sequence) -> bool:
        num_new = len(sequence.generated) - sequence.num_healing
        num_tokens = len(sequence.prompt) + len(sequence.generated)
        return num_new >= sequence.max_tokens or num_tokens >= self._plan.max_context

    def _emit_end(self, ended: Ended, text: str = "") -> None:
        sequence = ended.sequence
        usage = sequence.usage()
        request_id = sequence.request.request_id
        with self._lock:
            self._request_ids.discard(request_id)
            self._cancels.discard(request_id)
        self._counts[ended.state] += 1
        self._counts["prompt_tokens"] += usage.num_prompt_tokens if sequence.num_computed else 0
        self._counts["reused_tokens"] += usage.num_reused_tokens
        self._counts["generated_tokens"] += usage.num_generated_tokens
        if ended.state == "finished":
            self._mean_service_s += 0.1 * (usage.total_s - usage.queue_s - self._mean_service_s)
        finish = Finish(state=ended.state, reason=ended.reason, usage=usage, error=ended.error)
        sequence.sink(Output(request_id=request_id, text=text, logit_gap=sequence.take_logit_gap(), finish=finish))
