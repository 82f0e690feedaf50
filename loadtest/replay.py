"""The replay: users who type recorded edits against a server, and what they got for it.

    replay = Replay(read_trace(path, seed=0), ReplaySettings(users=2, keystrokes=100))
    async with open_dialect("grpc", address) as dialect:
        await replay.run(dialect)
    print(summarise(replay.outcomes, users=2))

Trace, settings and seed decide every request and when it is due; the server decides only how it is answered. A server
that is gone ends the replay: after a few answers in a row that were lost `given_up` says so, and what was measured
until then stays. Whoever cancels `run` finds in `outcomes` what was done.
"""

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from loadtest.dialects import Dialect, Query, Reply
from loadtest.outcomes import Outcome
from loadtest.stretches import choose_stretches
from loadtest.traces import Trace
from loadtest.typist import Typist
from loadtest.verification import Verification

LOST_AFTER = 5
"""Answers lost in a row after which the server counts as gone."""


class ReplaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is typed, by how many, how fast."""

    users: int = 1
    """How many type at once, each at another place of the trace."""
    speed: float = 1.0
    """How many seconds of the trace go into one of the replay."""
    keystrokes: int | None = None
    """Consecutive keystrokes that each user types; None: all of the trace."""
    seed: int = 0
    """Chooses the places."""
    max_tokens: int | None = None
    """Most tokens of an answer; None takes the server's default."""
    path: str = ""
    """Path of the file as the server is told. Empty: unknown."""


class Replay:
    """One run. `outcomes`, `given_up` and the processor times can be read at any time."""

    def __init__(self, trace: Trace, settings: ReplaySettings) -> None:
        """Choose who types what; raises TraceError when the trace is too short."""
        self._trace = trace
        self.settings = settings
        self.trace_length = len(trace.keystroke_times_s)
        """Keystrokes in the whole trace."""
        self.stretches = choose_stretches(
            trace.keystroke_times_s, users=settings.users, count=settings.keystrokes, seed=settings.seed
        )
        self.num_planned = sum(stretch.count for stretch in self.stretches)
        """Keystrokes that will have been typed in the end."""
        self.outcomes: list[Outcome] = []
        """What became of the keystrokes so far; those of one user are in their order."""
        self.given_up = ""
        """Why not everything was typed; empty while all is well."""
        self.cpu_s = 0.0
        """Processor time of this whole process while users typed."""
        self._num_lost = 0
        self._typists: list[Typist] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def typing_cpu_s(self) -> float:
        """The part of the processor time that went into typing, asking and judging, without the dialect."""
        return sum(typist.cpu_s for typist in self._typists)

    @property
    def num_stored(self) -> int:
        """Keystrokes that were answered without a model run."""
        return sum(outcome.is_stored for outcome in self.outcomes)

    async def run(self, dialect: Dialect, *, on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> None:
        """Type everything."""

        def keep(outcome: Outcome) -> None:
            self.outcomes.append(outcome)
            on_outcome(outcome)

        began_s = asyncio.get_running_loop().time()
        cpu_began_s = time.process_time()
        try:
            async with asyncio.TaskGroup() as tasks:
                for user, stretch in enumerate(self.stretches):
                    typist = Typist(
                        dialect,
                        self._trace.moments(first=stretch.first, count=stretch.count),
                        user=user,
                        query=self._common_query(user),
                        speed=self.settings.speed,
                        on_outcome=keep,
                        on_reply=self._watch,
                    )
                    self._typists.append(typist)
                    typing = typist.type(replay_began_s=began_s, delay_s=self._delay_s(user))
                    self._tasks.append(tasks.create_task(typing))
        finally:
            self.cpu_s = time.process_time() - cpu_began_s

    async def verify(
        self,
        dialect: Dialect,
        verification: Verification,
        *,
        on_checked: Callable[[int], None] = lambda num_checked: None,
    ) -> None:
        """Ask the model afresh for every answer that came without it, one after the other, and compare."""
        num_checked = 0
        for user, stretch in enumerate(self.stretches):
            stored = {
                outcome.number: outcome for outcome in self.outcomes if outcome.user == user and outcome.is_stored
            }
            if not stored:
                continue
            moments = self._trace.moments(first=stretch.first, count=stretch.count)
            keystrokes = (moment.keystroke for moment in moments if moment.keystroke is not None)
            for number, keystroke in enumerate(keystrokes):
                if number in stored:
                    await verification.check(dialect, self._common_query(user), keystroke, stored[number])
                    num_checked += 1
                    on_checked(num_checked)

    def _common_query(self, user: int) -> Query:
        settings = self.settings
        return Query(
            before="",
            path=settings.path,
            max_tokens=settings.max_tokens,
            session_id=f"replay-{settings.seed}-user-{user}",
        )

    def _delay_s(self, user: int) -> float:
        """Return when a user begins: not all in the same moment, but in the first second."""
        if user == 0:
            return 0.0
        return random.Random(f"delay/{self.settings.seed}/{user}").random() / self.settings.speed

    def _watch(self, reply: Reply) -> None:
        if reply.error_kind != "lost":
            self._num_lost = 0
            return
        self._num_lost += 1
        if self._num_lost == LOST_AFTER:
            self.given_up = f"{LOST_AFTER} answers in a row were lost; the last: {reply.error}"
            for task in self._tasks:
                task.cancel()
