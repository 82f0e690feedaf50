"""The typist: one user of a replay, who presses the recorded keys at the recorded times and asks at each.

Every change of the text makes what was asked before useless, so it is cancelled; a keystroke asks anew at its cursor.
Nothing is kept from one request to the next: what a server or a dialect remembers is theirs. The clock is the event
loop's, so tests type in no time.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator

import msgspec

from loadtest.dialects import Dialect, Query, Reply
from loadtest.outcomes import Outcome, judge_line, judge_next_chars
from loadtest.traces import PAUSE_CAP_S, Keystroke, Moment

DEADLINE_S = 3 * PAUSE_CAP_S
"""Longer than any pause: it is the next key that ends a request."""


class _Asking:
    """A keystroke whose answer is still of use."""

    def __init__(self, keystroke: Keystroke, due_s: float) -> None:
        self.keystroke = keystroke
        self.due_s = due_s
        self.asked_s = due_s
        self.first_text_s: float | None = None
        self.ended_s: float | None = None
        self.texts: list[str] = []
        self.reply: Reply | None = None
        self.task: asyncio.Task[None] | None = None


class Typist:
    """Types one stretch of a trace."""

    def __init__(
        self,
        dialect: Dialect,
        moments: Iterator[Moment],
        *,
        user: int,
        query: Query,
        speed: float,
        on_outcome: Callable[[Outcome], None],
        on_sign: Callable[[], None],
        on_reply: Callable[[Reply], None],
    ) -> None:
        """`query` has what all queries of the user have in common; its `session_id` is the user's name."""
        self._dialect = dialect
        self._moments = moments
        self._user = user
        self._query = query
        self._speed = speed
        self._on_outcome = on_outcome
        self._on_sign = on_sign
        self._on_reply = on_reply
        self._num_closed = 0
        self.num_asked = 0
        self.asked_s = float("-inf")
        """When the newest request was issued, on the event loop's clock."""
        self.requests = hashlib.sha256()
        """Hash of all requests issued and of when each was due."""
        self.cpu_s = 0.0
        """Processor time of typing, asking and judging, without the dialect's."""

    async def type(self, *, replay_began_s: float, delay_s: float) -> None:
        """Type to the end, beginning after `delay_s`; times of outcomes count from `replay_began_s`."""
        loop = asyncio.get_running_loop()
        asking: _Asking | None = None
        async with asyncio.TaskGroup() as requests:
            try:
                cpu_began_s = time.thread_time()
                while (moment := next(self._moments, None)) is not None:
                    due_s = replay_began_s + delay_s + moment.at_s / self._speed
                    self.cpu_s += time.thread_time() - cpu_began_s
                    await asyncio.sleep(max(0.0, due_s - loop.time()))
                    cpu_began_s = time.thread_time()
                    if asking is not None:
                        self._close(asking, due_s, replay_began_s)
                    asking = None
                    if moment.keystroke is not None:
                        asking = _Asking(moment.keystroke, due_s)
                        query = to_query(self._query, moment.keystroke)
                        asking.asked_s = self.asked_s = loop.time()
                        asking.task = requests.create_task(self._ask(asking, query))
                        self._note(query, moment.at_s)
                self.cpu_s += time.thread_time() - cpu_began_s
            except asyncio.CancelledError:
                if asking is not None and asking.reply is not None:  # it has ended: it counts
                    self._close(asking, loop.time(), replay_began_s)
                raise

    async def _ask(self, asking: _Asking, query: Query) -> None:
        loop = asyncio.get_running_loop()

        def take(text: str) -> None:
            if asking.first_text_s is None:
                asking.first_text_s = loop.time()
            asking.texts.append(text)
            self._on_sign()

        reply = await self._dialect.complete(query, deadline_s=DEADLINE_S, on_text=take)
        asking.ended_s = loop.time()
        asking.reply = reply
        self._on_sign()
        self._on_reply(reply)

    def _note(self, query: Query, at_s: float) -> None:
        """Take a request into the hash; lengths and order make its parts unambiguous."""
        self.num_asked += 1
        before, after = query.before.encode("utf-8", "surrogatepass"), query.after.encode("utf-8", "surrogatepass")
        told = (query.session_id, query.path, query.max_tokens, round(at_s / self._speed, 6), len(before), len(after))
        self.requests.update(repr(told).encode() + before + after)

    def _close(self, asking: _Asking, now_s: float, replay_began_s: float) -> None:
        """Give up what is still open of a keystroke's answer and report what became of it."""
        assert asking.task is not None, "asked"
        asking.task.cancel()
        keystroke, reply, due_s = asking.keystroke, asking.reply, asking.due_s
        text = "".join(asking.texts)
        is_whole = reply is not None and reply.error is None
        outcome = Outcome(
            user=self._user,
            number=self._num_closed,
            at_s=due_s - replay_began_s,
            clock_error_s=asking.asked_s - due_s,
            live_s=now_s - due_s,
            first_text_s=None if asking.first_text_s is None else asking.first_text_s - due_s,
            ended_s=None if asking.ended_s is None else asking.ended_s - due_s,
            text=text,
            source=reply.source if reply is not None else "",
            is_from_model=reply is None or reply.is_from_model,
            is_cut_short=reply is not None and reply.is_cut_short,
            num_typed=reply.num_typed if reply is not None else 0,
            num_computed_tokens=reply.num_computed_tokens if reply is not None and is_whole else None,
            error=reply.error if reply is not None else None,
            error_kind=reply.error_kind if reply is not None else None,
            matches_next_chars=judge_next_chars(keystroke, text, is_whole=is_whole),
            matches_line=judge_line(keystroke, text, is_whole=is_whole),
        )
        self._num_closed += 1
        self._on_outcome(outcome)


def to_query(common: Query, keystroke: Keystroke) -> Query:
    """Return what a user asks at a keystroke; the same for the replay and for its verification."""
    return msgspec.structs.replace(
        common,
        before=keystroke.before,
        after=keystroke.after,
        session_id=f"{common.session_id}-{keystroke.document}",
    )
