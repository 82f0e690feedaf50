"""Completion sessions: what an assistant's users saw, with each suggestion's prompt (coderec_programming_states).

    {"session": 0, "seq": 0, "TimeGenerated": "2022-08-08T16:05:28.904Z", "StateName": "Shown", "CurrentPrompt": "…"}

Every `Shown` state with a prompt is a keystroke that asks with that prompt, as it is given: text left of the cursor,
nothing right of it. These are not all keys that were pressed, only those at which the assistant had something to show;
so a replay measures real prompts at real intervals, not typing. Other states (a suggestion seen again, accepted,
rejected) ask nothing and change nothing.

What came of a prompt is read from the next different prompt of the session, where that one only adds to it: the next
five characters when it adds so many, the line when it adds its end, or when the user then paused. Else nothing is
known. Sessions follow each other after a pause.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Self

import msgspec

from loadtest.errors import TraceError
from loadtest.traces import NUM_NEXT_CHARS, PAUSE_CAP_S, REST_S, Keystroke, Moment

_ASKING = "Shown"


class _State(msgspec.Struct):
    session: int | str
    time: Annotated[datetime, msgspec.Meta(tz=True)] = msgspec.field(name="TimeGenerated")
    name: str = msgspec.field(name="StateName")
    prompt: str | None = msgspec.field(name="CurrentPrompt")


class SessionTrace:
    """A `Trace` of several sessions, each a document of its own."""

    def __init__(self, keystrokes: Sequence[Keystroke], times_s: Sequence[float]) -> None:
        """Take what is asked and when; `times_s` must not fall."""
        self._keystrokes = keystrokes
        self.keystroke_times_s = times_s

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Read JSON Lines; raises TraceError."""
        sessions: dict[int | str, list[_State]] = {}
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                state = msgspec.json.decode(line, type=_State)
            except (msgspec.DecodeError, RecursionError) as error:
                raise TraceError(f"line {number} of {name} is no state of a completion session: {error}") from None
            if state.name == _ASKING and state.prompt is not None:
                sessions.setdefault(state.session, []).append(state)
        keystrokes: list[Keystroke] = []
        times_s: list[float] = []
        at_s = -PAUSE_CAP_S
        for session, states in sessions.items():
            states.sort(key=lambda state: state.time)
            at_s += PAUSE_CAP_S
            for index, state in enumerate(states):
                if index:
                    at_s += min((state.time - states[index - 1].time).total_seconds(), PAUSE_CAP_S)
                times_s.append(at_s)
                keystrokes.append(_to_keystroke(str(session), states, index))
        if not keystrokes:
            raise TraceError(f"{name} has no {_ASKING} state with a prompt; expected prompts to ask with")
        return cls(keystrokes, times_s)

    def moments(self, *, first: int, count: int) -> Iterator[Moment]:
        """Yield `count` keystrokes from `first` on, and the end of the last one."""
        offset_s = -self.keystroke_times_s[first]
        for index in range(first, first + count):
            lap, ordinal = divmod(index, len(self._keystrokes))
            yield Moment(self._time_s(lap, ordinal) + offset_s, self._keystrokes[ordinal])
        lap, ordinal = divmod(first + count, len(self._keystrokes))
        yield Moment(self._time_s(lap, ordinal) + offset_s, None)

    def _time_s(self, lap: int, ordinal: int) -> float:
        return lap * (self.keystroke_times_s[-1] + PAUSE_CAP_S) + self.keystroke_times_s[ordinal]


def _to_keystroke(session: str, states: Sequence[_State], index: int) -> Keystroke:
    prompt = states[index].prompt or ""
    other = next((i for i in range(index + 1, len(states)) if states[i].prompt != prompt), None)
    added, is_rest = "", False
    if other is not None and (later := states[other].prompt or "").startswith(prompt):
        added = later[len(prompt) :]
        is_rest = other + 1 == len(states) or (states[other + 1].time - states[other].time).total_seconds() >= REST_S
    head = prompt[prompt.rfind("\n") + 1 :]
    line = (head + added).partition("\n")[0] if is_rest or "\n" in added else head
    return Keystroke(
        before=prompt,
        after="",
        document=session,
        next_chars=added[:NUM_NEXT_CHARS] if len(added) >= NUM_NEXT_CHARS else "",
        line=line if line != head else None,
    )
