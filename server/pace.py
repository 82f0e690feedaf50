"""How often the text of one answer goes out: the first at once, the first whole line at once, then by the clock.

A token takes a millisecond or a few, and no eye follows that; but each part that is streamed costs both ends more than
a tenth of a millisecond of processor time, which on the server is the engine's. So text that comes quickly is handed on
in parts of some tokens. Nothing waits for a timer: text that is held goes out with the next token that is due, so an
engine whose steps are slower than the interval streams every token. (Inference servers know this as stream interval.)

Invariant: the texts handed on, joined, are the texts taken; the last output is handed on when it is taken.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from engine.types import Output

AnyOutput = TypeVar("AnyOutput", bound=Output)


class Pace:
    """One answer's outputs. Used by the thread that makes them."""

    def __init__(self, hand_on: Callable[[Output], None], *, interval_s: float, clock: Callable[[], float]) -> None:
        """`interval_s` lies at least between two outputs handed on; 0 hands on every one."""
        self._hand_on = hand_on
        self._interval_s = interval_s
        self._clock = clock
        self._next_s = float("-inf")
        self._has_line = False
        self._held: Output | None = None

    def take(self, output: Output) -> None:
        """Take an output, and hand on what is due with it."""
        if self._held is not None:
            output = join(self._held, output)
        now_s = self._clock()
        ends_first_line = not self._has_line and "\n" in output.text
        if output.finish is None and now_s < self._next_s and not ends_first_line:
            self._held = output
            return
        self._held = None
        self._has_line = self._has_line or ends_first_line
        self._next_s = now_s + self._interval_s
        self._hand_on(output)


def join(earlier: AnyOutput, later: AnyOutput) -> AnyOutput:
    """Return two outputs of one answer as one."""
    gaps = [gap for gap in (earlier.logit_gap, later.logit_gap) if gap is not None]
    return msgspec.structs.replace(later, text=earlier.text + later.text, logit_gap=min(gaps, default=None))
