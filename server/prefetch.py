"""Work done ahead: when a suggestion has been shown, the requests that are likely next are answered before they come.

Guessed are, at the place where the cursor stands:
- *accept*: the whole suggestion is taken, by a key or by typing on. What the model wrote beyond the text that was shown
  is the draft of that request's answer.
- *key*: another character is typed than the one suggested, one that followed the same text elsewhere
  (`server/next_keys.py`).
- *newline*: a line is begun, indented as an editor would do it.

How likely each is says `server/predictor.py`, which learns from every guess that came true or did not. Those above a
threshold are asked, the likeliest first, one after the other, with a priority below that of all requests for which
somebody waits, and only while no request is in flight. The next request of the session cancels what it made
unreachable. The threshold follows what became of the work: it rises while more of the tokens written ahead are wasted
than `prefetch_wasted_share` allows, times the factor of `server/prefetch_budget.py`.

What is asked ahead is exactly what a client would ask, so its answer is exact, like any other of the session. Used from
the event loop's thread only.

Invariants: at most one guess of a session runs; nothing is begun for a state that is not the session's newest.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import msgspec

from engine.types import SamplingParams
from server.admission import Admission
from server.config import ServerConfig
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.next_keys import indentation_after, rank_keys
from server.predictor import Guess, Kind, Predictor
from server.prefetch_budget import PrefetchBudget
from server.sessions import Session
from server.suggestion import Ahead, Suggestion
from server.types import CompletionRequest

MOST_GUESSES = 3
"""Guesses that are asked at one state of the text."""
MOST_PENDING = 8
"""Guesses of a session of which it is not known yet whether they come true."""
_RANKED = 4
_LEAST_ODDS = 4.0
_FORGET = 0.98
"""What is left of a token's weight in the share that was wasted, after each piece of work."""
_ENOUGH_TOKENS = 200
"""Tokens from which on the share that was wasted says something."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may come."""

    kind: Kind
    features: tuple[float, ...]
    request: CompletionRequest
    """As the client would ask it."""
    base: str
    """Text left of the cursor where it was guessed."""
    moves_cut: bool
    """Whether the prompt is laid out anew for it, since the line is another one."""


Begin = Callable[[Session, Candidate, SamplingParams, str], Suggestion]
"""Asks the engine ahead, for a tenant's session."""


@dataclass(kw_only=True)
class _Plan:
    """What is done ahead for one session."""

    pending: list[Candidate] = field(default_factory=list)
    waiting: list[Candidate] = field(default_factory=list)
    """To be asked, the likeliest first."""
    is_over: bool = False
    """A newer request of the session has come."""
    closers: dict[str, str] = field(default_factory=dict)
    """What the session's editor puts behind the cursor when a character is typed."""


class Prefetcher:
    """Plans and begins work ahead for all sessions."""

    def __init__(
        self,
        config: ServerConfig,
        lifecycle: Lifecycle,
        admission: Admission,
        metrics: Metrics,
        predictor: Predictor,
        *,
        begin: Begin,
        on_guess: Callable[[Guess], None] = lambda guess: None,
    ) -> None:
        """`on_guess` is told of every guess once it is known whether it came true."""
        self._config, self._lifecycle, self._admission = config, lifecycle, admission
        self._metrics, self._predictor = metrics, predictor
        self._begin, self._on_guess = begin, on_guess
        self.budget = PrefetchBudget(config.prefetch_budget, time.monotonic)
        metrics.watch_budget(self.budget)
        self._plans: WeakKeyDictionary[Session, _Plan] = WeakKeyDictionary()
        self.num_running = 0
        """Requests that are being answered ahead."""
        self._recent_tokens = self._recent_used = 0.0

    @property
    def least_probability(self) -> float:
        """The probability from which on a guess is asked ahead now."""
        least = self._config.prefetch_least_probability
        if self._recent_tokens < _ENOUGH_TOKENS:
            return least
        wasted = 1 - min(1.0, self._recent_used / self._recent_tokens)
        allowed = self.budget.factor() * self._config.prefetch_wasted_share
        return min(0.95, max(0.5 * least, least + wasted - allowed))

    def note_request(self, session: Session, request: CompletionRequest) -> None:
        """Learn from what was guessed before a request; from now on nothing is begun for the state before it."""
        plan = self._plans.get(session)
        if plan is None:
            return
        plan.is_over = True
        still_pending = []
        for candidate in plan.pending:
            has_come = _has_come(candidate, request)
            if has_come is None:
                still_pending.append(candidate)
                continue
            guess = Guess(kind=candidate.kind, features=candidate.features, has_come=has_come)
            self._predictor.learn(guess)
            self._on_guess(guess)
        if plan.pending:
            _learn_closer(plan.closers, plan.pending[-1], request)
        plan.pending = still_pending[-MOST_PENDING:]

    def note_use(self, ahead: Ahead) -> None:
        """Take note that somebody is served what was made ahead; once for each."""
        if not ahead.is_used:
            ahead.is_used = True
            self._metrics.count_prefetch_hit(ahead.kind)
            self._count_used(ahead.num_tokens)

    def plan(
        self,
        session: Session,
        request: CompletionRequest,
        sampling: SamplingParams,
        tenant: str,
        shown: str,
        typed: int,
    ) -> None:
        """Begin what is likely next, now that a request has been answered with `shown`.

        `typed`: characters of the suggestion that stand before the cursor already.
        """
        if not self._config.prefetch or sampling.temperature > 0 or not self._is_idle():
            return
        earlier = self._plans.get(session)
        plan = _Plan() if earlier is None else _Plan(pending=earlier.pending, closers=earlier.closers)
        self._plans[session] = plan
        candidates = _guess(request, shown, typed, plan.closers)
        known = {candidate.request.before for candidate in plan.pending}
        plan.pending += [candidate for candidate in candidates if candidate.request.before not in known]
        likely = [(self._predictor.probability(one.kind, one.features), one) for one in candidates]
        least = self.least_probability
        likely = sorted((pair for pair in likely if pair[0] >= least), key=lambda pair: -pair[0])
        plan.waiting = [candidate for _, candidate in likely[:MOST_GUESSES]]
        self._go_on(plan, session, sampling, tenant)

    def _is_idle(self) -> bool:
        """Tell whether nobody waits for anything, and not too much is done ahead."""
        is_serving = self._lifecycle.state == "serving" and self._lifecycle.opened_engine is not None
        is_free = self._admission.num_in_flight == 0 and self.num_running < self._config.prefetch_at_once
        return is_serving and is_free

    def _go_on(self, plan: _Plan, session: Session, sampling: SamplingParams, tenant: str) -> None:
        """Begin the next guess of a plan, if it still is of use."""
        while plan.waiting and not (plan.is_over or session.is_forgotten) and self._is_idle():
            candidate = plan.waiting.pop(0)
            if session.has_answer(candidate.request, sampling):
                continue
            suggestion = self._begin(session, candidate, sampling, tenant)
            self.num_running += 1
            self._metrics.count_prefetch(candidate.kind)
            suggestion.generation.on_end(partial(self._end, suggestion, plan, session, sampling, tenant))
            return

    def _end(
        self, suggestion: Suggestion, plan: _Plan, session: Session, sampling: SamplingParams, tenant: str
    ) -> None:
        """Count what the work has cost, and go on."""
        self.num_running -= 1
        finish, ahead = suggestion.generation.finish, suggestion.ahead
        if finish is not None and ahead is not None:
            usage = finish.usage
            ahead.num_tokens = usage.num_generated_tokens
            self._metrics.count_prefetch_tokens(
                num_generated=ahead.num_tokens, num_prompt=usage.num_prompt_tokens - usage.num_reused_tokens
            )
            self._recent_tokens = _FORGET * self._recent_tokens + ahead.num_tokens
            self._recent_used *= _FORGET
            if ahead.is_used:  # it was taken over while it ran
                self._count_used(ahead.num_tokens)
        self._go_on(plan, session, sampling, tenant)

    def _count_used(self, num_tokens: int) -> None:
        self._recent_used += num_tokens
        self._metrics.count_prefetch_used(num_tokens)


def _guess(request: CompletionRequest, shown: str, typed: int, closers: dict[str, str]) -> list[Candidate]:
    """Return what may come next, in no order."""
    before, after = request.before, request.after
    chars_typed = math.log1p(typed)

    def candidate(kind: Kind, text: str, features: tuple[float, ...]) -> Candidate:
        later = msgspec.structs.replace(
            request, before=before + text, after=closers.get(text, "") + after, request_id=""
        )
        return Candidate(kind=kind, features=features, request=later, base=before, moves_cut="\n" in text)

    candidates = []
    if shown.strip():
        candidates.append(candidate("accept", shown, (1.0, math.log1p(len(shown)), chars_typed)))
    newline_odds = -_LEAST_ODDS
    for key, probability in rank_keys(before, after, most=_RANKED):
        odds = _odds(probability)
        if key == "\n":
            newline_odds = odds
        elif not shown.startswith(key) and len([one for one in candidates if one.kind == "key"]) < 2:
            candidates.append(candidate("key", key, (1.0, odds, chars_typed)))
    if not shown.startswith("\n"):
        line = before[before.rfind("\n") + 1 :]
        is_line_end = not after.partition("\n")[0].strip()
        features = (1.0, newline_odds, float(is_line_end), float(not shown.strip()))
        candidates.append(candidate("newline", "\n" + indentation_after(line), features))
    return candidates


def _odds(probability: float) -> float:
    """Return the logarithm of the odds, within bounds."""
    least = 1 / (1 + math.exp(_LEAST_ODDS))
    bounded = min(1 - least, max(least, probability))
    return math.log(bounded / (1 - bounded))


def _has_come(candidate: Candidate, request: CompletionRequest) -> bool | None:
    """Tell whether a guess has come true with a request; None: it still may, or nothing was typed."""
    target = candidate.request
    if request.before == candidate.base:
        return None
    if request.before.startswith(target.before):
        return request.after == target.after
    if request.before.startswith(candidate.base) and target.before.startswith(request.before):
        return None
    return False


def _learn_closer(closers: dict[str, str], candidate: Candidate, request: CompletionRequest) -> None:
    """Learn what an editor puts behind the cursor: a bracket or quotation mark that closes the one typed."""
    key, after = request.before[len(candidate.base) :], candidate.request.after
    if len(key) != 1 or not request.before.startswith(candidate.base):
        return
    if len(request.after) == len(after) + 1 and request.after.endswith(after):
        closers[key] = request.after[0]
    elif request.after == after:
        closers.pop(key, None)
