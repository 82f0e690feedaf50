"""Outcomes: what became of each keystroke of a replay, and the figures they add up to.

**Time to the first text.** A keystroke is served when the first text of its answer is there before the text changes
again. One that is not has made the user wait until then, and the wait goes on with the next keystroke: its time is how
long it was open plus the time of the keystroke after it, of the same user. So a server that is always late for fast
typing is not excused by the keystrokes it answers in pauses. Time in which nothing was asked (after a deletion, a
paste) does not count. An answer that says that nothing belongs at the cursor ends the wait when it has ended; how many
those are is `empty_share`. A wait that never ends is longer than any figure: a percentile that falls on one has no
value.

All times count from when the key was to be pressed, not from when the replay got to it.

**Matches.** A suggestion is judged when all of it is there, or enough: five characters, or a line break. The next five
characters match when the suggestion, followed by what stands right of the cursor, begins as what was typed there next.
The line matches when the suggestion makes the cursor's line what it was at the typist's next pause of two seconds, or
when the line was left, trailing white space aside. Where nothing more was typed, nothing is judged. The shares are of
the suggestions judged, so they are about what was suggested, and `on_time_share` is about how often something was.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from loadtest.report import Number
from loadtest.traces import NUM_NEXT_CHARS, Keystroke


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one keystroke. Seconds count from when the key was to be pressed, unless said otherwise."""

    user: int
    number: int
    """Which of the user's keystrokes it is."""
    at_s: float
    """When the key was to be pressed, since the replay began."""
    clock_error_s: float
    """How much later it was pressed."""
    live_s: float
    """When the text changed again: an answer after that is of no use."""
    first_text_s: float | None
    """When the first text came; None when none did while it was of use."""
    ended_s: float | None
    """When the answer or its error was whole; None when it was cancelled before."""
    text: str
    """What had come by then."""
    source: str
    """Where the answer came from; empty when that is not known."""
    is_from_model: bool
    is_cut_short: bool
    """Whether the limit of tokens ended the text."""
    num_typed: int
    """So many characters before the cursor are the beginning of the suggestion whose rest the text is."""
    num_computed_tokens: int | None
    """Tokens a model ran over for it; None when nobody knows, as for a cancelled answer."""
    error: str | None
    error_kind: str | None
    matches_next_chars: bool | None
    """Whether the suggestion begins with what was typed next; None when it cannot be judged."""
    matches_line: bool | None
    """Whether it makes the line what it became; None when it cannot be judged."""

    @property
    def is_cancelled(self) -> bool:
        """Whether its answer was still open when the text changed."""
        return self.ended_s is None

    @property
    def is_stored(self) -> bool:
        """Whether it was answered without a model run."""
        return self.error is None and not self.is_from_model

    @property
    def is_empty(self) -> bool:
        """Whether the answer was that nothing belongs at the cursor."""
        return self.ended_s is not None and self.error is None and not self.text

    @property
    def shown_s(self) -> float | None:
        """When the user saw the suggestion, or could know that there is none; None when that was too late or never."""
        shown_s = self.ended_s if self.is_empty else self.first_text_s
        return shown_s if shown_s is not None and shown_s <= self.live_s else None


def judge_next_chars(keystroke: Keystroke, text: str, *, is_whole: bool) -> bool | None:
    """Tell whether a suggestion begins with what was typed next."""
    if not keystroke.next_chars or not (is_whole or len(text) >= NUM_NEXT_CHARS):
        return None
    rest = keystroke.after[:NUM_NEXT_CHARS]
    return bool(text) and (text + rest)[:NUM_NEXT_CHARS] == (keystroke.next_chars + rest)[:NUM_NEXT_CHARS]


def judge_line(keystroke: Keystroke, text: str, *, is_whole: bool) -> bool | None:
    """Tell whether a suggestion makes the cursor's line what it became."""
    if keystroke.line is None or not (is_whole or "\n" in text):
        return None
    head = keystroke.before[keystroke.before.rfind("\n") + 1 :]
    tail_end = keystroke.after.find("\n")
    tail = keystroke.after if tail_end < 0 else keystroke.after[:tail_end]
    return (head + text + tail).partition("\n")[0].rstrip() == keystroke.line.rstrip()


def summarise(outcomes: Sequence[Outcome], *, users: int) -> dict[str, Number]:
    """Return the headline figures; outcomes of one user must be in their order.

    What a keystroke cost is not among them: answers that were cancelled do not tell, only the server's counters do.
    """
    waits_s = sorted(wait_times_s(outcomes).values())
    stored = [outcome for outcome in outcomes if outcome.is_stored]
    own_s = sorted(outcome.shown_s for outcome in stored if outcome.shown_s is not None)
    costs = [outcome.num_computed_tokens for outcome in outcomes if outcome.num_computed_tokens is not None]
    late_s = sorted(outcome.clock_error_s for outcome in outcomes)
    return {
        "first_text_p50_ms": to_ms(percentile(waits_s, 0.50)),
        "first_text_p95_ms": to_ms(percentile(waits_s, 0.95)),
        "on_time_share": _share([outcome.shown_s is not None for outcome in outcomes]),
        "answered_without_model_share": _share([outcome.is_stored for outcome in outcomes]),
        "first_text_without_model_p95_ms": to_ms(percentile(own_s, 0.95)),
        "matches_next_5_chars_share": _share([outcome.matches_next_chars for outcome in outcomes]),
        "matches_line_share": _share([outcome.matches_line for outcome in outcomes]),
        "matches_next_5_chars_by_model_share": _share(
            [outcome.matches_next_chars for outcome in outcomes if not outcome.is_stored]
        ),
        "matches_next_5_chars_without_model_share": _share([outcome.matches_next_chars for outcome in stored]),
        "matches_line_without_model_share": _share([outcome.matches_line for outcome in stored]),
        "tokens_computed_per_keystroke": None,
        "tokens_computed_per_ended_answer": sum(costs) / len(costs) if costs else None,
        "cancelled_share": _share([outcome.is_cancelled for outcome in outcomes]),
        "empty_share": _share([outcome.is_empty for outcome in outcomes]),
        "errors": sum(outcome.error is not None for outcome in outcomes),
        "keystrokes": len(outcomes),
        "users": users,
        "clock_error_p50_ms": to_ms(percentile(late_s, 0.50)),
        "clock_error_p95_ms": to_ms(percentile(late_s, 0.95)),
        "clock_error_max_ms": to_ms(percentile(late_s, 1.0)),
    }


def wait_times_s(outcomes: Sequence[Outcome]) -> dict[tuple[int, int], float]:
    """Return each keystroke's time to the first text, by user and number; infinite when none came any more.

    They are in the order of the outcomes.
    """
    waits_s: dict[tuple[int, int], float] = {}
    next_s: dict[int, float] = {}
    for outcome in reversed(outcomes):
        shown_s = outcome.shown_s
        wait_s = outcome.live_s + next_s.get(outcome.user, math.inf) if shown_s is None else shown_s
        waits_s[outcome.user, outcome.number] = next_s[outcome.user] = wait_s
    return dict(reversed(waits_s.items()))


def count_endings(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many keystrokes ended how: the sources of answers, and the ways to have none."""
    return dict(Counter(_ending(outcome) for outcome in outcomes).most_common())


def to_row(outcome: Outcome, wait_s: float) -> dict[str, Any]:
    """Return an outcome as results keep it."""
    return {
        "user": outcome.user,
        "number": outcome.number,
        "at_s": round(outcome.at_s, 4),
        "live_ms": to_ms(outcome.live_s),
        "ending": _ending(outcome),
        "source": outcome.source,
        "first_text_ms": to_ms(wait_s),
        "own_first_text_ms": to_ms(outcome.first_text_s),
        "ended_ms": to_ms(outcome.ended_s),
        "on_time": outcome.shown_s is not None,
        "num_chars": len(outcome.text),
        "num_computed_tokens": outcome.num_computed_tokens,
        "matches_next_5_chars": outcome.matches_next_chars,
        "matches_line": outcome.matches_line,
        "clock_error_ms": to_ms(outcome.clock_error_s),
    }


def to_ms(seconds: float | None) -> float | None:
    """Return milliseconds; None for what is not known or never comes."""
    return None if seconds is None or math.isinf(seconds) else round(seconds * 1e3, 3)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that this share of the ordered values does not exceed; None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _share(judgements: Sequence[bool | None]) -> float | None:
    judged = [judgement for judgement in judgements if judgement is not None]
    return sum(judged) / len(judged) if judged else None


def _ending(outcome: Outcome) -> str:
    if outcome.error_kind is not None:
        return outcome.error_kind
    if outcome.ended_s is not None:
        return outcome.source or "source not said"
    return "cancelled while writing" if outcome.text else "cancelled before any text"
