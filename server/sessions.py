"""Keystroke sessions: an open file, what was suggested in it, and what of that answers the next keystroke.

A session keeps its document, where a stream sends one, and its last suggestions. `Session.find` says which of those
answers a request: the rest of one that has ended (type-through, also across lines; after a backspace an earlier one),
or one that is still being written and agrees with all that was typed (adopted). Whatever else the session has running
is superseded: cancelled in the engine.

Suggestions may be made ahead of the requests that they answer (`server/prefetch.py`). While what is typed is answered
by another one, those that it may still lead to go on; else whatever is made ahead is cancelled too.

A suggestion that was cut off by its limit of tokens answers only while at least `session_least_chars` of it are left;
then its rest is the draft of a new request. One that the model ended is complete however little is left of it; one
that was trimmed, while anything is left.

Sessions are bounded in bytes, each and in all (the one unused for longest goes first), and expire. A tenant is part of
a session's name: another tenant's session of the same id is another session. Knows no transport and no engine.
Used from the event loop's thread only.

Invariants: after `find` no suggestion of a session runs but the one found, and those made ahead; `num_bytes` of the
table is the sum of its sessions' `counted_bytes`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, NamedTuple

from engine.types import SamplingParams
from server.config import ServerConfig
from server.document import Document
from server.suggestion import Ahead, Suggestion
from server.types import CompletionRequest

MAX_SUGGESTIONS = 64
"""Suggestions that one session keeps, those made ahead among them: enough for the backspaces after a typing error."""

_SHOWN = 8
"""Suggestions among which the one that was accepted is looked for."""


class Found(NamedTuple):
    """A suggestion that answers a request."""

    suggestion: Suggestion
    num_typed: int
    """Characters of it that stand before the cursor already."""
    how: Literal["ended", "adopted"]


class Session:
    """The suggestions of one open file."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._suggestions: list[Suggestion] = []
        self._suggestion_bytes = 0
        self.document: Document | None = None
        """The open document, where a stream keeps one."""
        self.is_forgotten = False
        """Whether nothing is to be begun for it any more."""
        self.last_used_s = 0.0
        self.counted_bytes = 0
        """What the table of sessions has counted of it, when it was used last."""

    @property
    def num_bytes(self) -> int:
        """Memory that its texts take."""
        return self._suggestion_bytes + (0 if self.document is None else self.document.num_bytes)

    def find(self, request: CompletionRequest, sampling: SamplingParams) -> Found | None:
        """Return what answers a request, the newest first, and cancel everything else that the session has running."""
        found = self._find(request, sampling)
        is_known = found is not None and found.how == "ended"
        for suggestion in self._suggestions:
            if found is not None and suggestion is found.suggestion:
                continue
            if not (is_known and suggestion.ahead is not None and suggestion.is_reachable_from(request)):
                suggestion.generation.supersede()
        return found

    def has_answer(self, request: CompletionRequest, sampling: SamplingParams) -> bool:
        """Tell whether `find` would find something, and change nothing."""
        return self._find(request, sampling) is not None

    def is_accepted_at(self, request: CompletionRequest) -> bool:
        """Tell whether the cursor stands right behind a whole suggestion of those shown last."""
        return any(suggestion.is_taken_at(request) for suggestion in self._suggestions[-_SHOWN:])

    def begun_ahead_of(self, request: CompletionRequest, sampling: SamplingParams) -> Ahead | None:
        """Return what is being made ahead for a request and has written something beyond what was typed."""
        for suggestion in reversed(self._suggestions):
            if suggestion.ahead is None or not suggestion.generation.is_running:
                continue
            num_typed = suggestion.num_typed_at(request, sampling)
            if num_typed is not None and num_typed < len(suggestion.generation.text):
                return suggestion.ahead
        return None

    def draft(self, request: CompletionRequest) -> str:
        """Return the text that is likeliest to come at a request that nothing answers; "" when nothing is known."""
        drafts = (suggestion.draft_at(request) for suggestion in reversed(self._suggestions))
        return next((draft for draft in drafts if draft), "")

    def remember(self, suggestion: Suggestion) -> None:
        """Keep a suggestion that has just begun, and forget the oldest ones where they are too many or too large."""
        self._suggestions.append(suggestion)
        self._suggestion_bytes += suggestion.num_bytes
        while len(self._suggestions) > 1 and (
            len(self._suggestions) > MAX_SUGGESTIONS or self.num_bytes > self._config.session_bytes
        ):
            oldest = self._suggestions.pop(0)
            self._suggestion_bytes -= oldest.num_bytes
            oldest.generation.forget()

    def forget(self) -> None:
        """Forget everything; what nobody reads is cancelled."""
        self.is_forgotten = True
        for suggestion in self._suggestions:
            suggestion.generation.forget()
        self._suggestions.clear()
        self._suggestion_bytes = 0
        self.document = None

    def _find(self, request: CompletionRequest, sampling: SamplingParams) -> Found | None:
        for suggestion in reversed(self._suggestions):
            num_typed = suggestion.num_typed_at(request, sampling)
            if num_typed is None:
                continue
            generation = suggestion.generation
            if generation.is_running and suggestion.ahead is not None:
                continue  # it has to be asked again, as one for which somebody waits; its text is the draft
            if generation.is_running:
                return Found(suggestion, num_typed, "adopted")
            if generation.finish is None or generation.finish.state != "finished":
                continue
            num_left = len(generation.text) - num_typed
            if generation.is_cut and num_left == 0:
                continue  # the model would have gone on
            if generation.finish.reason == "stop" or num_left >= self._config.session_least_chars:
                return Found(suggestion, num_typed, "ended")
        return None


class Sessions:
    """All sessions of a server."""

    def __init__(self, config: ServerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()  # the one unused for longest first
        self.num_bytes = 0
        """Memory that all their texts take, of each as it was when it was used last."""

    def __len__(self) -> int:
        return len(self._sessions)

    def session(self, tenant: str, session_id: str) -> Session:
        """Return a tenant's session of a name, a new one where there is none; and forget those whose time has come."""
        name = (tenant, session_id)
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(self._config)
        session.last_used_s = self._clock()
        self.num_bytes += session.num_bytes - session.counted_bytes
        session.counted_bytes = session.num_bytes
        self._sessions.move_to_end(name)
        self._forget_oldest()
        return session

    def document(self, tenant: str, session_id: str) -> Document | None:
        """Return a session's open document; None when there is none, or when it has been forgotten."""
        session = self._sessions.get((tenant, session_id))
        return None if session is None else session.document

    def close(self, tenant: str, session_id: str) -> None:
        """Forget a session; harmless when there is none."""
        session = self._sessions.pop((tenant, session_id), None)
        if session is not None:
            self.num_bytes -= session.counted_bytes
            session.forget()

    def _forget_oldest(self) -> None:
        """Forget sessions that have expired, and the oldest ones while all of them are too large or too many."""
        now_s = self._clock()
        while len(self._sessions) > 1:
            name, oldest = next(iter(self._sessions.items()))
            is_expired = now_s - oldest.last_used_s > self._config.session_idle_s
            is_full = self.num_bytes > self._config.sessions_bytes or len(self._sessions) > self._config.max_sessions
            if not (is_expired or is_full):
                break
            self.close(*name)
