"""The replay: users who type recorded edits against a server, and what they got for it.

    replay = Replay(read_trace(path, seed=0), ReplaySettings(users=2, keystrokes=100))
    async with open_dialect("grpc", address) as dialect:
        await replay.run(dialect)
    print(summarise(replay.outcomes, users=2))

Trace, settings and seed decide every request and when it is due; the server decides only how it is answered. A server
that is gone ends the replay: after a few answers in a row that were lost, or when nothing has come for some seconds
and it does not even answer for its health, `given_up` says so, and what was measured until then stays. Whoever cancels
`run` finds in `outcomes` what was done.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable

import msgspec

from loadtest.counters import ComputedTokens
from loadtest.dialects import Dialect, Query, Reply
from loadtest.losses import Losses
from loadtest.outcomes import Outcome
from loadtest.stretches import choose_stretches
from loadtest.traces import Trace
from loadtest.typist import Typist
from loadtest.verification import Verification

LOST_AFTER = 5
"""Answers lost in a row after which the server counts as gone."""
SILENCE_S = 5.0
"""Seconds without any text or end, while something is asked, after which the server's health is asked for."""


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
        self.computed_tokens = ComputedTokens(None)
        """What the server says that all of it cost."""
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
        self._losses = Losses(most=LOST_AFTER, kinds=["lost"])
        self._heard_s = 0.0
        self._typists: list[Typist] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def typing_cpu_s(self) -> float:
        """The part of the processor time that went into typing, asking and judging, without the dialect."""
        return sum(typist.cpu_s for typist in self._typists)

    @property
    def num_asked(self) -> int:
        """Requests issued."""
        return sum(typist.num_asked for typist in self._typists)

    def requests_digest(self) -> str:
        """Return a hash of all requests issued, user by user: what was asked and when it was due."""
        return hashlib.sha256(b"".join(typist.requests.digest() for typist in self._typists)).hexdigest()[:16]

    @property
    def num_stored(self) -> int:
        """Keystrokes that were answered without a model run."""
        return sum(outcome.is_stored for outcome in self.outcomes)

    async def run(
        self,
        dialect: Dialect,
        *,
        computed_tokens: ComputedTokens | None = None,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """Type everything; raises CountersError before anything is typed."""
        self.computed_tokens = computed_tokens or self.computed_tokens

        def keep(outcome: Outcome) -> None:
            self.outcomes.append(outcome)
            on_outcome(outcome)

        await self.computed_tokens.begin()
        began_s = self._heard_s = asyncio.get_running_loop().time()
        cpu_began_s = time.process_time()
        listening = asyncio.create_task(self._listen(dialect))
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
                        on_sign=self._hear,
                        on_reply=self._watch,
                    )
                    self._typists.append(typist)
                    typing = typist.type(replay_began_s=began_s, delay_s=self._delay_s(user))
                    self._tasks.append(tasks.create_task(typing))
            if not self.given_up and self._is_unheard:  # the last keystrokes were cancelled by the end of the replay
                await self._check_alive(dialect)
        finally:
            self.cpu_s = time.process_time() - cpu_began_s
            listening.cancel()
        if not self.given_up:
            await self.computed_tokens.end()

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

    @property
    def _is_unheard(self) -> bool:
        """Whether something was asked after the last that was heard of the server."""
        return any(typist.asked_s > self._heard_s for typist in self._typists)

    def _hear(self) -> None:
        self._heard_s = asyncio.get_running_loop().time()

    def _watch(self, reply: Reply) -> None:
        self._give_up(self._losses.take(reply))

    async def _listen(self, dialect: Dialect) -> None:
        """Notice a server that hangs: next keystrokes cancel its answers, so that none is ever missed."""
        loop = asyncio.get_running_loop()
        while not self.given_up:
            await asyncio.sleep(SILENCE_S)
            if self._is_unheard and loop.time() - self._heard_s >= SILENCE_S:
                await self._check_alive(dialect)

    async def _check_alive(self, dialect: Dialect) -> None:
        silent_s = asyncio.get_running_loop().time() - self._heard_s
        if not await dialect.is_alive():
            self._give_up(f"nothing came for {silent_s:.1f} s, and the server does not answer for its health")

    def _give_up(self, why: str) -> None:
        if why and not self.given_up:
            self.given_up = why
            for task in self._tasks:
                task.cancel()
