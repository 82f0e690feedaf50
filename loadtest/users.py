"""The load test's users: people who type through `Session`, a trace of single requests, and patient askers.

They live on an event loop in a process of their own (`load_driver.py`), not in Locust's: gRPC under gevent was seen to
hold answers back by 0.2 s and, with more than ten channels, by seconds, which would have been measured as the server's
(`docs/decisions/0029`). Each is one of a known number of users, and its number decides all that it does. Figures go to
a `Report`: under `wait` how long people waited for text (`waiting.py`), under `keystroke` and `answer` what became of
what was asked. The clock is the event loop's.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from loadtest.arrivals import Arrival, read_arrivals, window
from loadtest.load_result import FAILED, FIRST_TEXT, NEVER_S, WHOLE
from loadtest.source_text import Place, choose_place
from loadtest.stretches import choose_stretches
from loadtest.traces import Moment, Trace, read_trace
from loadtest.waiting import Wait
from server.client import AsyncClient, AsyncClientSession
from server.errors import BusyError, RequestFailedError

_FOREVER = 1 << 40
_STRETCH = 200
_THINK_S = 0.2
_PROMPT_TOKENS = 1400


class Figure(NamedTuple):
    """One thing measured."""

    kind: str
    name: str
    seconds: float
    num_chars: int = 0
    error: str = ""
    """Why it failed; empty: it did not."""


Report = Callable[[Figure], None]


class UserSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What all users of one load test have in common."""

    address: str
    duration_s: float = 300.0
    typing_trace: str = ""
    typing_path: str = ""
    arrivals: str = ""
    arrivals_begin_s: float = 0.0
    rate: float = 1.0
    lanes: int = 1
    """Among how many users the trace of requests is divided."""
    seed: int = 0
    max_tokens: int = 48
    timeout_s: float = 30.0


class LoadUser(Protocol):
    """One user; `run` goes on until it is cancelled or has nothing more to do."""

    async def run(self) -> None:
        """Do what such a user does."""


class TypingUser:
    """Types an editing history at its recorded times, from a place of its own, in one session; open loop."""

    def __init__(self, client: AsyncClient, settings: UserSettings, number: int, report: Report) -> None:
        self._client, self._settings, self._number, self._report = client, settings, number, report
        self._wait = Wait()
        self._state = 0
        self._pressed_s = 0.0
        self._is_open = False
        """Whether the newest keystroke's answer has not ended yet."""

    async def run(self) -> None:
        """Type until cancelled; then report the keystrokes that never got any text, but the one that is open."""
        settings = self._settings
        session = self._client.session(
            session_id=f"typist-{settings.seed}-{self._number}",
            path=settings.typing_path,
            max_tokens=settings.max_tokens,
        )
        async with session, asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(session))
            try:
                await self._type(session, _moments(settings, self._number))
            except RequestFailedError as error:
                self._note("session lost", error)
            finally:
                reading.cancel()
                for _ in range(self._wait.num_never - self._wait.is_open):
                    self._report(Figure("wait", FIRST_TEXT, NEVER_S, error="no text came at all"))

    async def _type(self, session: AsyncClientSession, moments: Iterator[Moment]) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        text: str | None = None
        for moment in moments:
            await asyncio.sleep(max(0.0, began_s + moment.at_s - loop.time()))
            now_s = loop.time()
            if self._is_open:
                self._note("given up before its answer was whole")
            keystroke = moment.keystroke
            if keystroke is None:  # what has changed is told with the next keystroke; until then nothing is wanted
                self._wait.change(now_s)
                if text is not None:
                    self._state = await session.move(0, is_quiet=True)
                continue
            whole, cursor = keystroke.before + keystroke.after, len(keystroke.before)
            self._wait.press(now_s)
            self._pressed_s, self._is_open = now_s, True
            if text is None:
                self._state = await session.open(whole, cursor)
            else:
                self._state = await session.edit(*difference(text, whole), cursor=cursor)
            text = whole

    async def _read(self, session: AsyncClientSession) -> None:
        loop = asyncio.get_running_loop()
        shown = 0
        try:
            async for update in session:
                if update.state != self._state or not self._is_open:
                    continue
                if update.error is not None:
                    self._note("refused", update.error)
                    continue
                if update.text or update.completion is not None:
                    for waited_s in self._wait.show(loop.time()):
                        self._report(Figure("wait", FIRST_TEXT, waited_s))
                if update.completion is not None:
                    self._note(f"answered by {update.completion.source}", num_chars=len(update.text))
                if update.text and shown != update.state:
                    shown = update.state
                    await session.shown(update.state)
        except RequestFailedError as error:
            self._note("session lost", error)

    def _note(self, name: str, error: Exception | None = None, *, num_chars: int = 0) -> None:
        """Report what became of the newest keystroke, which is not open any more."""
        self._is_open = False
        seconds = asyncio.get_running_loop().time() - self._pressed_s
        self._report(Figure("keystroke", name, seconds, num_chars, "" if error is None else describe(error)))


class BurstUser:
    """Sends its share of a trace's requests at their times, whatever became of those before; open loop."""

    def __init__(self, client: AsyncClient, settings: UserSettings, number: int, report: Report) -> None:
        self._client, self._settings, self._number, self._report = client, settings, number, report

    async def run(self) -> None:
        """Send them, and wait for the last answers."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        every = _arrivals(settings)
        began_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for index in range(self._number % settings.lanes, len(every), settings.lanes):
                arrival = every[index]
                await asyncio.sleep(max(0.0, began_s + arrival.at_s - loop.time()))
                place = choose_place(index, num_tokens=arrival.num_prompt_tokens, seed=settings.seed)
                asking = ask(self._client, place, max_tokens=arrival.num_output_tokens, report=self._report)
                tasks.create_task(asking)


class PatientUser:
    """Asks, waits for the whole answer, thinks for a moment, asks about another place; closed loop."""

    def __init__(self, client: AsyncClient, settings: UserSettings, number: int, report: Report) -> None:
        self._client, self._settings, self._number, self._report = client, settings, number, report

    async def run(self) -> None:
        """Ask until cancelled."""
        settings = self._settings
        number = self._number * 1_000_003
        while True:
            place = choose_place(number, num_tokens=_PROMPT_TOKENS, seed=settings.seed)
            await ask(self._client, place, max_tokens=settings.max_tokens, report=self._report)
            await asyncio.sleep(_THINK_S)
            number += 1


USERS: dict[str, type[TypingUser] | type[BurstUser] | type[PatientUser]] = {
    "TypingUser": TypingUser,
    "BurstUser": BurstUser,
    "PatientUser": PatientUser,
}


async def ask(client: AsyncClient, place: Place, *, max_tokens: int, report: Report) -> None:
    """Ask for one completion and report it: its first text, its end, or why there is none."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    num_chars, first_s = 0, None
    try:
        async with client.stream(place.before, place.after, path=place.path, max_tokens=max_tokens) as stream:
            async for text in stream:
                first_s = first_s or loop.time() - began_s
                num_chars += len(text)
    except RequestFailedError as error:
        report(Figure("answer", FAILED, loop.time() - began_s, error=describe(error)))
        return
    ended_s = loop.time() - began_s
    report(Figure("answer", FIRST_TEXT, ended_s if first_s is None else first_s))
    report(Figure("answer", WHOLE, ended_s, num_chars))


def describe(error: Exception) -> str:
    """Return an error by its kind, so that equal ones can be counted: messages with figures in them all differ."""
    if isinstance(error, BusyError):
        return "no room (RESOURCE_EXHAUSTED)"
    return f"{type(error).__name__}: {str(error).partition(';')[0][:100]}"


def difference(old: str, new: str) -> tuple[int, int, str]:
    """Return the one replacement that makes `new` of `old`: where it begins, where it ends in `old`, and its text."""
    least = min(len(old), len(new))
    head = _greatest(least, lambda length: old[:length] == new[:length])
    tail = _greatest(least - head, lambda length: old[len(old) - length :] == new[len(new) - length :])
    return head, len(old) - tail, new[head : len(new) - tail]


def _greatest(most: int, is_common: Callable[[int], bool]) -> int:
    """Return the greatest length that is common, by bisection: comparing texts is fast, indexing them is not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if is_common(middle):
            low = middle
        else:
            high = middle - 1
    return low


@cache
def _trace(path: str, seed: int) -> Trace:
    return read_trace(Path(path), seed=seed)


@cache
def _arrivals(settings: UserSettings) -> list[Arrival]:
    return window(
        read_arrivals(Path(settings.arrivals)),
        begin_s=settings.arrivals_begin_s,
        duration_s=settings.duration_s,
        rate=settings.rate,
    )


def _moments(settings: UserSettings, number: int) -> Iterator[Moment]:
    """Return what a user types, from a busy place of its own on, without end."""
    trace = _trace(settings.typing_trace, settings.seed)
    times_s = trace.keystroke_times_s
    stretches = choose_stretches(times_s, users=number + 1, count=min(len(times_s), _STRETCH), seed=settings.seed)
    return trace.moments(first=stretches[number].first, count=_FOREVER)


async def run_user(user: LoadUser) -> None:
    """Run a user to its end; being cancelled is one."""
    with suppress(asyncio.CancelledError):
        await user.run()
