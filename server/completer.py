"""The use case: one request in, the parts of its answer out, and nothing left behind. Knows no transport.

Every admitted request ends in exactly one way: its parts end with a finish, or an error is raised. What the engine does
for it ends then too; in a session it goes on for a moment, since the next keystroke may adopt it. An answer is looked
for where it costs least: the request's session, the completion cache, then the engine.
"""

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from functools import partial

import msgspec

from engine.errors import EngineClosedError
from engine.types import CompletionEngine, Finish, Output, Request, SamplingParams, Usage
from server.admission import Admission
from server.answers import Answers
from server.config import ServerConfig
from server.errors import CompletionFailedError, DeadlineError, RequestCancelledError, UnavailableError
from server.feedback import Feedback
from server.generation import Answer, Generation
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.predictor import Predictor
from server.prefetch import Candidate, Prefetcher
from server.prompt import build_request
from server.repositories import DEFAULT_CONTEXT_TOKENS, Repositories
from server.sessions import Found, Session, Sessions
from server.suggestion import Ahead, Suggestion
from server.types import AnswerPart, CompletionRequest, Source

_GIVEN_UP = (asyncio.CancelledError, GeneratorExit, RequestCancelledError, DeadlineError)
"""How a request ends that its client, a newer one of its session or its deadline gave up."""


class Completer:
    """Serves requests, many at once. Used from the event loop's thread only."""

    def __init__(
        self,
        config: ServerConfig,
        lifecycle: Lifecycle,
        admission: Admission,
        metrics: Metrics,
        sessions: Sessions,
        answers: Answers,
        repositories: Repositories,
        *,
        predictor: Predictor | None = None,
        feedback: Feedback | None = None,
        on_request: Callable[[str, CompletionRequest], None] = lambda tenant, request: None,
    ) -> None:
        """`predictor` says what is worth doing ahead, None: a new one; `feedback` hears of answers and of guesses.

        `on_request` hears of every request that is let in, and whose.
        """
        self._config = config
        self._lifecycle = lifecycle
        self._admission = admission
        self._metrics = metrics
        self._sessions = sessions
        self._answers = answers
        self._repositories = repositories
        self._feedback = feedback or Feedback(config, metrics)
        self._on_request = on_request
        self._serial = itertools.count()
        self.prefetcher = Prefetcher(
            config,
            lifecycle,
            admission,
            metrics,
            predictor or Predictor(),
            begin=self._begin_ahead,
            on_guess=self._feedback.note_guess,
        )

    async def complete(
        self, request: CompletionRequest, *, deadline_s: float | None, tenant: str = ""
    ) -> AsyncGenerator[AnswerPart, None]:
        """Yield the parts of an answer in order; the last one has `finish`. `deadline_s`: seconds left, or None.

        Close the generator (`contextlib.aclosing`) to cancel the request. Raises the errors of `server.errors` below
        RequestFailedError, and those of the engine's `submit`.
        """
        engine = self._lifecycle.engine
        sampling = self._admission.check(request, deadline_s=deadline_s)
        name = request.request_id or uuid.uuid4().hex
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with ExitStack() as leaving, self._admission.place():
            self._on_request(tenant, request)
            session = None
            if request.session_id and not request.is_fresh and self._config.sessions:
                session = self._sessions.session(tenant, request.session_id)
            is_accept = session is not None and session.is_accepted_at(request)
            found = self._find(session, request, sampling) if session is not None else None
            if found is not None and found.how == "ended":
                assert session is not None, "found in a session"
                ahead = found.suggestion.ahead
                is_first_use = ahead is not None and not ahead.is_used
                if ahead is not None:
                    self.prefetcher.note_use(ahead)
                part = _rest(found.suggestion.generation, found.num_typed, name, is_ahead=is_first_use)
                self._metrics.observe_first_token(loop.time() - began_s)
                self._metrics.observe_known_answer(loop.time() - began_s)
                self.prefetcher.budget.note_wait(loop.time() - began_s)
                self._note_answer(tenant, name, part.source, part.text, is_accept=is_accept)
                leaving.callback(self.prefetcher.plan, session, request, sampling, tenant, part.text, found.num_typed)
                yield part
                return
            if found is not None:
                generation, num_typed = found.suggestion.generation, found.num_typed
            else:
                generation, num_typed = self._begin(engine, request, sampling, name, tenant, session), 0
            with generation.reading():
                outputs = self._read(
                    generation, num_typed, is_adopted=found is not None, began_s=began_s, deadline_s=deadline_s
                )
                async with aclosing(outputs):
                    async for output in outputs:
                        if output.finish is not None:
                            shown = generation.text[num_typed:]
                            self._note_answer(tenant, name, generation.source, shown, is_accept=is_accept)
                            if found is None and generation.source != "model":
                                self._metrics.observe_known_answer(loop.time() - began_s)
                            if session is not None:
                                leaving.callback(
                                    self.prefetcher.plan, session, request, sampling, tenant, shown, num_typed
                                )
                        yield AnswerPart(
                            request_id=name,
                            text=output.text,
                            logit_gap=output.logit_gap,
                            finish=output.finish,
                            source=generation.source,
                            num_typed=num_typed + generation.num_typed,
                        )

    def _find(self, session: Session, request: CompletionRequest, sampling: SamplingParams) -> Found | None:
        """Return what a session knows of a request, learn from what was guessed of it, and note what is taken over."""
        self.prefetcher.note_request(session, request)
        begun = session.begun_ahead_of(request, sampling)
        found = session.find(request, sampling)
        if found is None and begun is not None:
            self.prefetcher.note_use(begun)  # its text is the draft
        return found

    def _note_answer(self, tenant: str, name: str, source: Source, text: str, *, is_accept: bool) -> None:
        """Count a whole answer, and keep in mind what it was."""
        self._feedback.remember(tenant, name, source, text)
        self._metrics.count_answer(source)
        if is_accept:
            self._metrics.count_accept(is_continued=source != "model")

    def _begin_ahead(self, session: Session, candidate: Candidate, sampling: SamplingParams, tenant: str) -> Suggestion:
        """Ask the engine, below the priority of all for which somebody waits, what a client may ask next."""
        request = candidate.request
        ahead = Ahead(kind=candidate.kind)
        generation = self._begin(
            self._lifecycle.engine,
            request,
            sampling,
            "ahead",
            tenant,
            session,
            ahead=ahead,
            moves_cut=candidate.moves_cut,
        )
        return Suggestion(request=request, sampling=sampling, generation=generation, ahead=ahead)

    def _begin(
        self,
        engine: CompletionEngine,
        request: CompletionRequest,
        sampling: SamplingParams,
        name: str,
        tenant: str,
        session: Session | None,
        *,
        ahead: Ahead | None = None,
        moves_cut: bool = False,
    ) -> Generation:
        """Begin to answer a request, from the completion cache or else by the engine, and let its session know."""
        engine_id = f"{name}#{next(self._serial)}"  # two clients may choose the same name; the engine's ids are unique
        generation = Generation(
            engine,
            engine_id,
            linger_s=0.0 if session is None else self._config.session_linger_s,
            # an oracle is asked for every token
            interval_s=0.0 if request.is_fresh else self._config.chunk_interval_s,
            trim=self._config.trim,
        )
        draft = "" if session is None else session.draft(request)

        def prepare() -> Request | Answer:
            max_tokens = (engine.stats().max_context or DEFAULT_CONTEXT_TOKENS) - sampling.max_tokens
            context = self._repositories.context(request, tenant=tenant, max_tokens=max_tokens)
            asked = build_request(
                msgspec.structs.replace(request, context=context),
                request_id=engine_id,
                sampling=sampling,
                config=self._config,
                tenant=tenant,
            )
            if ahead is not None:
                # Aside, the KV of the line that is typed in is put into the prefix store, not overwritten.
                asked = msgspec.structs.replace(asked, priority="speculative", is_aside=moves_cut)
            key = self._answers.key(asked, engine, has_seed=request.sampling.seed is not None)
            if key is None:
                return msgspec.structs.replace(asked, draft=draft)
            if (kept := self._answers.find(key)) is not None:
                return kept
            generation.on_answer(partial(self._answers.keep, key))
            return msgspec.structs.replace(asked, draft=draft or self._answers.draft(key))

        generation.begin(prepare)
        if session is not None:
            session.remember(Suggestion(request=request, sampling=sampling, generation=generation, ahead=ahead))
        return generation

    async def _read(
        self, generation: Generation, num_typed: int, *, is_adopted: bool, began_s: float, deadline_s: float | None
    ) -> AsyncGenerator[Output, None]:
        """Yield the outputs of a generation without its first `num_typed` characters, which are there already.

        What an adopted one has written so far comes at once and in one.
        """
        allowed_s = self._config.default_deadline_s if deadline_s is None else deadline_s
        loop = asyncio.get_running_loop()
        is_begun = False
        try:
            await self._wait_submitted(generation)
            so_far, number = generation.read_so_far() if is_adopted else (None, 0)
            while True:
                if so_far is not None:
                    self._raise_unless_answer(generation, so_far)
                    rest = msgspec.structs.replace(so_far, text=so_far.text[num_typed:])
                    num_typed = max(0, num_typed - len(so_far.text))
                    if rest.text or rest.finish is not None:
                        if not is_begun:
                            self._metrics.observe_first_token(loop.time() - began_s)
                            self.prefetcher.budget.note_wait(loop.time() - began_s)
                            is_begun = True
                        yield rest
                    if so_far.finish is not None:
                        return
                try:
                    async with asyncio.timeout_at(began_s + allowed_s):
                        so_far, number = await generation.read(number)
                except TimeoutError:
                    raise DeadlineError(
                        f"the request did not end within {allowed_s:.3g} s; set a longer timeout, or ask for less"
                    ) from None
        except _GIVEN_UP:
            if not is_begun:  # it waited so long in vain
                self.prefetcher.budget.note_wait(loop.time() - began_s)
            raise

    async def _wait_submitted(self, generation: Generation) -> None:
        """Wait until the engine has a request; raises what it refuses it with."""
        try:
            await generation.wait_submitted()
        except EngineClosedError:
            if self._lifecycle.state == "serving":  # nobody closed it
                self._lifecycle.is_broken.set()
            raise

    def _raise_unless_answer(self, generation: Generation, output: Output) -> None:
        """Turn an end that is no answer into its error."""
        if output.finish is None or output.finish.state == "finished":
            return
        if self._lifecycle.state == "draining":
            raise UnavailableError(
                f"the server stopped after draining for {self._config.drain_s:g} s, before the request ended; "
                "send it to another server, or raise server.drain_s"
            )
        if generation.is_superseded:
            raise RequestCancelledError(
                "a newer request of the same session took the place of this one; expected one at a time; "
                "use the newer one's answer, or give each open file a session of its own"
            )
        if output.finish.state == "cancelled":
            raise RequestCancelledError("the engine cancelled the request; send it again if its answer is still wanted")
        raise CompletionFailedError(f"the engine failed the request: {output.finish.error or 'it gave no reason'}")


def _rest(generation: Generation, num_typed: int, name: str, *, is_ahead: bool) -> AnswerPart:
    """Return what is left of a generation that has ended, as a whole answer; it costs no tokens."""
    assert generation.finish is not None, "only what has ended is a whole answer"
    finish = Finish(state="finished", reason=generation.finish.reason, usage=Usage())
    return AnswerPart(
        request_id=name,
        text=generation.text[num_typed:],
        finish=finish,
        source="prefetch" if is_ahead else "session",
        num_typed=num_typed + generation.num_typed,
    )
