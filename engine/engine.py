"""The engine: read this first.

`submit` takes a request from any thread, turns its text into a prompt and queues it. `step`, called again and again
by one thread, admits what waits, runs one round on the device and hands new text to each request's sink. `cancel`
takes effect at the next step. The life of a request:

    submit → [inbox] → scheduler.plan → runner.run → detokenizer.push → sink, until finished, cancelled or failed

Knows no network and no editor.
"""

import threading
import time
from collections import deque

from engine.budgets import FixedBudgets
from engine.costs import StepCosts, WidthCosts
from engine.detokenizer import Detokenizer
from engine.drafts.acceptance import Acceptance
from engine.drafts.corpus import Corpora
from engine.drafts.drafting import Drafting
from engine.drafts.lengths import LengthController
from engine.errors import EngineClosedError, QueueFullError, RequestError, StepError
from engine.fim import FimTemplate, build_prompt
from engine.model.block_sparse import BLOCK, Fallback, Report
from engine.plan import EnginePlan
from engine.prefix_store import PrefixStore
from engine.room import Place, Room
from engine.runner import Choice, Row, Runner
from engine.scheduler import Ended, PlannedRow, Scheduler, StepPlan
from engine.sequence import Sequence
from engine.tokenizer import Tokenizer
from engine.types import PRIORITIES, EngineStats, Finish, FinishReason, Output, Request, Sink

_FOCUS_TOKENS = 64
"""Block-sparse attention keeps what lies so near to the place where the text above the cut ends and `after` begins."""

_COUNTERS = (
    "finished",
    "cancelled",
    "failed",
    "prompt_tokens",
    "reused_tokens",
    "generated_tokens",
    "computed_tokens",
    "restored_blocks",
    "steps",
    "sparse",
)


class Engine:
    """Continuous batching of completions over one runner."""

    def __init__(
        self,
        *,
        runner: Runner,
        tokenizer: Tokenizer,
        template: FimTemplate,
        plan: EnginePlan,
        costs: StepCosts,
        max_waiting: int,
        max_slowdown: float = 0.0,
        unhurried_s: float = 0.0,
        budgets: FixedBudgets | None = None,
        identity: str = "",
    ) -> None:
        """`identity` names all that decides an answer besides the request; for the others see `EngineConfig`."""
        self.identity = identity
        self._runner, self._tokenizer, self._template = runner, tokenizer, template
        self.plan, self.costs, self._max_waiting = plan, costs, max_waiting
        self._budgets = budgets or FixedBudgets()
        self._prefix_store = PrefixStore(plan.num_blocks)
        self._stop_ids = frozenset(template.stop_ids)
        self._acceptance, self._corpora = Acceptance(), Corpora(markers=self._stop_ids)
        self._drafting = Drafting(self._acceptance, self._corpora, markers=self._stop_ids)
        self._scheduler = Scheduler(
            num_slots=plan.num_slots,
            shapes=plan.shapes,
            costs=costs,
            prefix_store=self._prefix_store,
            drafting=self._drafting if plan.has_drafts else None,
            lengths=LengthController(self._acceptance, WidthCosts(costs, plan.shapes)),
            budgets=self._budgets,
            reuses_kv=plan.reuses_kv,
        )
        self._lock = threading.Lock()
        # Guarded by the lock: what other threads hand to the stepping thread.
        self._inbox: deque[Sequence] = deque()
        self._cancels: set[str] = set()
        self._places: dict[str, Place] = {}
        """What each open request holds, by its id."""
        self._room = Room(
            max_slowdown=max_slowdown,
            unhurried_s=unhurried_s,
            first=plan.num_slots,
            most=plan.num_slots + max_waiting,
            alone_s=_guess_alone_s(plan, costs),
            clock=time.monotonic,
        )
        self._is_closed = False
        # Owned by the stepping thread.
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._num_rejected = 0
        self._fallbacks: dict[str, int] = {}
        self._report = Report()
        self._mean_service_s = 0.1

    # --- from any thread -------------------------------------------------------------------------------------------

    def submit(self, request: Request, sink: Sink) -> None:
        """Accept a request, or raise RequestError, QueueFullError or EngineClosedError and touch nothing."""
        with self._lock:
            self._check_door(request)  # what is refused costs nothing
        sequence = self._make_sequence(request, sink)
        with self._lock:
            self._check_door(request)
            if request.request_id in self._places:
                raise RequestError(
                    f"request_id {request.request_id!r} is in use; expected one that no open request has"
                )
            self._inbox.append(sequence)
            self._places[request.request_id] = self._room.enter(request.tenant, is_bounded=_is_bounded(request))

    def cancel(self, request_id: str) -> None:
        """End a request at the next step; ids that are unknown or already ended are ignored."""
        with self._lock:
            if request_id in self._places:
                self._cancels.add(request_id)

    def stats(self) -> EngineStats:
        """Return counters and gauges; a step may be half counted."""
        counts = {f"num_{name}": value for name, value in self._counts.items()}
        running, slots = self._scheduler.num_running(), self.plan.num_slots
        return EngineStats(
            num_slots=slots,
            max_context=self.plan.max_context,
            num_running=running,
            num_waiting=len(self._inbox) + self._scheduler.num_waiting(),
            kv_usage=running / slots,
            num_rejected=self._num_rejected,
            num_drafted_tokens=sum(counts.num_proposed_tokens for counts in self._acceptance.counts().values()),
            num_accepted_tokens=sum(counts.num_accepted_tokens for counts in self._acceptance.counts().values()),
            num_preempted=self._scheduler.num_preempted,
            num_stored_blocks=self._prefix_store.num_used_blocks,
            num_recompiles=self._runner.num_recompiles,
            num_kept_blocks=int(self._report.num_kept),
            num_visible_blocks=int(self._report.num_visible),
            num_sparse_choices=int(self._report.num_choices),
            sum_kept_mass=self._report.mass,
            num_sparse_fallbacks=dict(self._fallbacks),
            num_budget_windows=dict(self._budgets.counts),
            **counts,
        )

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has in this engine's vocabulary."""
        return len(self._tokenizer.encode(text))

    def has_work(self) -> bool:
        """Tell whether a step would do anything."""
        return bool(self._inbox or self._scheduler.num_running() or self._scheduler.num_waiting())

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
                self._counts["sparse"] += sequence.focus is not None
                if sequence.fallback is not None:
                    self._count_fallback(sequence.fallback)
        for request_id in cancels:
            if ended := self._scheduler.cancel(request_id):
                self._emit_end(ended)
        plan = self._scheduler.plan()
        try:
            self._run(plan)
        except StepError as error:
            for ended in self._scheduler.fail_running(str(error)):
                self._emit_end(ended)
            self._runner.reset()
        if plan.runs:
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
        """Assert the invariants of everything that has any."""
        self._scheduler.check_integrity()
        self._corpora.check_integrity()

    def _make_sequence(self, request: Request, sink: Sink) -> Sequence:
        sampling = request.sampling
        if not 0 <= sampling.max_tokens < self.plan.max_context:
            raise RequestError(
                f"max_tokens is {sampling.max_tokens}; expected 0 to {self.plan.max_context - 1}, "
                f"since the context holds {self.plan.max_context} tokens"
            )
        prompt = build_prompt(
            request,
            self._tokenizer,
            self._template,
            max_prompt_tokens=self.plan.max_context - max(1, sampling.max_tokens),
            heals=self.plan.token_healing,
        )
        focus = self._choose_focus(request, prompt.tokens)
        return Sequence(
            request=request,
            sink=sink,
            prompt=prompt.tokens,
            heal=prompt.heal,
            num_dropped=prompt.num_dropped_tokens,
            max_tokens=sampling.max_tokens,
            max_context=self.plan.max_context,
            detokenizer=Detokenizer(self._tokenizer, heal=prompt.heal, stop=sampling.stop),
            sources=self._drafting.begin(prompt.tokens, tenant=request.tenant, given=prompt.draft),
            focus=focus if isinstance(focus, tuple) else None,
            fallback=focus if isinstance(focus, str) else None,
        )

    def _check_door(self, request: Request) -> None:
        """Raise EngineClosedError or QueueFullError when a request may not come in; only with the lock held."""
        if self._is_closed:
            raise EngineClosedError("the engine is stopping; send the request to another replica or try again later")
        waiting = self._num_waiting(request)
        free = self.plan.num_slots - self._scheduler.num_running(request.priority)
        if waiting >= self._max_waiting + free:
            self._num_rejected += 1
            rounds = 1 + waiting / self.plan.num_slots
            raise QueueFullError(
                f"the queue is full: {waiting} requests wait and at most {self._max_waiting} may; try again later",
                retry_after_s=round(rounds * self._mean_service_s, 3),
            )
        retry_after_s = self._room.retry_after_s(request.tenant) if _is_bounded(request) else None
        if retry_after_s is not None:
            self._num_rejected += 1
            raise QueueFullError(
                f"{self._room.num_in_hand} requests are in hand, and one more would be answered too late; expected at "
                f"most {self._room.limit}, fairly shared by tenants; try again in {retry_after_s:.2f} s, ask at "
                "background priority, or raise engine.max_slowdown",
                retry_after_s=retry_after_s,
            )

    def _choose_focus(self, request: Request, prompt: tuple[int, ...]) -> tuple[int, int] | Fallback | None:
        """Return the positions around the cut and the cursor for block-sparse attention; else why not, if asked."""
        plan, mode = self.plan, self.plan.sparse if request.sparse == "auto" else request.sparse
        if mode == "off" or (mode == "auto" and len(prompt) < plan.sparse_tokens):
            return None
        problem: Fallback | None = plan.sparse_problem
        if problem is None and len(prompt) < BLOCK:
            problem = "short"
        if problem is None and len(prompt) <= plan.sparse_blocks * BLOCK:
            problem = "all_kept"
        if problem is not None:
            return problem
        place = prompt.index(self._template.suffix_id)
        return max(0, place - _FOCUS_TOKENS), place + _FOCUS_TOKENS

    def _count_fallback(self, reason: str) -> None:
        self._fallbacks[reason] = self._fallbacks.get(reason, 0) + 1

    def _num_waiting(self, request: Request) -> int:
        """Count what waits before a new request: nothing of lower priority keeps it out."""
        rank = PRIORITIES.index(request.priority)
        arrived = sum(PRIORITIES.index(sequence.request.priority) <= rank for sequence in self._inbox)
        return arrived + self._scheduler.num_waiting(request.priority)

    def _run(self, plan: StepPlan) -> None:
        if plan.saves or plan.loads:
            self._runner.copy_blocks(plan.saves, plan.loads)
            self._counts["restored_blocks"] += len(plan.loads)
        for run in plan.runs:
            began = time.perf_counter()
            choices = self._runner.run(
                run.shape, list(map(self._row, run.rows)), self._row(run.chunk) if run.chunk else None
            )
            seconds = time.perf_counter() - began
            self.costs.note(run.shape, seconds)
            self._budgets.note_step(time.monotonic(), seconds)
            if run.chunk and run.chunk.sequence.focus is not None:
                self._note_sparse(run.chunk, self._runner.last_report)
            for planned, chosen in zip(run.all_rows, choices, strict=True):
                self._advance(planned, chosen)

    def _note_sparse(self, planned: PlannedRow, report: Report) -> None:
        """Count what a chunk kept; from the first block on that was left out, its sequence's KV is no dense one's."""
        sequence = planned.sequence
        if report.num_kept < report.num_visible and sequence.num_dense is None:
            sequence.num_dense = sequence.num_computed
        if report.num_equal and sequence.fallback is None:
            sequence.fallback = "equal"  # once a sequence
            self._count_fallback("equal")
        self._report = Report(*(a + b for a, b in zip(self._report, report, strict=True)))

    def _row(self, planned: PlannedRow) -> Row:
        sequence, num_tokens, draft = planned
        start = sequence.num_computed
        return Row(
            slot=sequence.slot,
            start=start,
            tokens=[*sequence.tokens[start : start + num_tokens], *draft.tokens],
            sampling=sequence.request.sampling,
            num_generated=sequence.num_generated,
            num_wanted=1 + len(draft.tokens),
            allowed=self._tokenizer.tokens_for_bytes(sequence.heal) if sequence.heal else None,
            focus=sequence.focus,
        )

    def _advance(self, planned: PlannedRow, choices: list[Choice]) -> None:
        """Take what a step computed for a sequence: its KV, and as many new tokens as the draft foretold, and one."""
        sequence, num_tokens, draft = planned
        num_prompt_tokens = num_tokens if sequence.phase == "prefill" else 0
        self._counts["computed_tokens"] += num_prompt_tokens
        sequence.num_computed += num_tokens
        if sequence.num_pending or sequence.max_tokens == 0:
            self._budgets.note_progress(sequence, num_prompt_tokens)
        if sequence.num_pending:  # the prompt goes on
            return
        if sequence.max_tokens == 0:  # a warming request: only its KV was wanted
            self._emit_end(self._scheduler.end(sequence, "finished", "length"))
            return
        right = [guess == choice.token for guess, choice in zip(draft.tokens, choices, strict=False)]
        num_accepted = right.index(False) if False in right else len(right)
        self._counts["computed_tokens"] += 1 + len(draft.tokens)
        self._acceptance.record(draft, num_verified=len(right), num_accepted=num_accepted)
        self._budgets.note_progress(
            sequence, num_prompt_tokens, num_new_tokens=num_accepted + 1, num_drafted_tokens=len(right)
        )
        text = ""
        for i, choice in enumerate(choices[: num_accepted + 1]):
            sequence.append(choice.token, choice.logit_gap)
            reason, new_text = self._take_token(sequence, choice.token)
            text += new_text
            if reason is not None:
                self._emit_end(self._scheduler.end(sequence, "finished", reason), text=text)
                return
            sequence.num_computed += i < num_accepted
        if text:
            output = Output(request_id=sequence.request.request_id, text=text, logit_gap=sequence.take_logit_gap())
            sequence.sink(output)

    def _take_token(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, str]:
        """Return why the sequence ends with its newest token, None if it goes on, and the text that is final now."""
        if token in self._stop_ids:
            return "stop", sequence.detokenizer.flush()
        if sequence.heal:
            num_written = len(self._tokenizer.token_bytes(token))
            sequence.num_healing += num_written <= len(sequence.heal)
            sequence.heal = sequence.heal[num_written:]
        text = sequence.detokenizer.push(token)
        if sequence.detokenizer.is_stopped:
            return "stop", text
        if sequence.num_left <= 0:
            return "length", text + sequence.detokenizer.flush()
        return None, text

    def _emit_end(self, ended: Ended, text: str = "") -> None:
        sequence = ended.sequence
        usage = sequence.usage()
        request_id = sequence.request.request_id
        with self._lock:
            self._cancels.discard(request_id)
            self._room.leave(self._places.pop(request_id), ended.state, usage)
        self._counts[ended.state] += 1
        if self.plan.has_drafts and sequence.started_at:
            self._corpora.add(
                sequence.request.tenant, sequence.token_array(), key=sequence.request.session or sequence.request.path
            )
        self._counts["prompt_tokens"] += usage.num_prompt_tokens if sequence.started_at else 0
        self._counts["reused_tokens"] += usage.num_reused_tokens
        self._counts["generated_tokens"] += usage.num_generated_tokens
        if ended.state == "finished":
            self._mean_service_s += 0.1 * (usage.total_s - usage.queue_s - self._mean_service_s)
        finish = Finish(state=ended.state, reason=ended.reason, usage=usage, error=ended.error)
        sequence.sink(Output(request_id=request_id, text=text, logit_gap=sequence.take_logit_gap(), finish=finish))


def _is_bounded(request: Request) -> bool:
    """Tell what somebody waits for: only that is refused for being too late."""
    return request.priority == PRIORITIES[0] and not request.is_fresh


def _guess_alone_s(plan: EnginePlan, costs: StepCosts) -> float:
    """Return about what a request takes that has the engine to itself: half a context of prompt and 32 tokens."""
    chunk = plan.shapes.chunk_buckets[-1]
    num_chunks = max(1, plan.max_context // 2 // chunk)
    return num_chunks * costs.seconds(plan.shapes.for_chunk(chunk)) + 32 * costs.seconds(plan.shapes.for_rows(1, 1))
