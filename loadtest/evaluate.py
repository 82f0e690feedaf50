"""Evaluation: asks a server for the hole of every row and scores the answers against what really stood there.

Every row that was asked is in every figure of quality: one whose answer failed counts as wrong. How answers are cut
and limited depends on the row alone, so it is the same for every dialect:

- A row whose solution is one line: the answer is its text up to the first line break after text, and generation stops
  there, as in the infilling benchmarks of single lines.
- Any other row: the whole answer. The model has to know where to stop; how many lines the solution has is not given
  away to it.
- Most new tokens: one for each UTF-8 byte of the solution and some more. A tokenizer of bytes never needs more than
  one a byte, so no right answer is cut off.

Knows neither a server's words nor how results are shown.
"""

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from engine.types import ContextChunk
from loadtest import report
from loadtest.dialects import MODEL_SOURCE, Dialect, ErrorKind, Query, Reply
from loadtest.errors import DialectError
from loadtest.losses import Losses
from loadtest.rows import Row, Rows, group_by_reason
from loadtest.scores import edit_similarity, first_line, has_first_line, is_exact_match, is_single_line

DEADLINE_S = 60.0
"""Seconds that one answer may take."""
MOST_TOKENS = 1024
_SPARE_TOKENS = 16
_LOST_AFTER = 3
"""Answers lost in a row, beyond those asked at once, after which the server counts as gone."""
_LOST: tuple[ErrorKind, ...] = ("lost", "deadline")
_RETRY_S = 0.5
_END_S = 0.02
_SHOWN = 5
_LANGUAGES = {"c++": "cpp", "c#": "csharp", "f#": "fsharp"}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one row that was asked."""

    row: Row
    answer: str
    """What is scored: the text, or its first line for a row of one line."""
    first_text_s: float | None
    """When the first text came, from the question on; None when none did."""
    total_s: float
    """When what is scored was there."""
    reply: Reply
    """What the dialect said; it knows no token counts where the stream was stopped after its first line."""

    @property
    def is_exact_match(self) -> bool:
        """Whether the answer is the solution."""
        return self.reply.error is None and is_exact_match(self.answer, self.row.canonical_solution)

    @property
    def edit_similarity(self) -> float:
        """How near the answer is to the solution, 0 to 1."""
        return 0.0 if self.reply.error is not None else edit_similarity(self.answer, self.row.canonical_solution)


class Evaluation:
    """One run over rows. `outcomes` can be read at any time, also after an interrupt.

    A server that is gone, or hangs, ends the run: after a few answers in a row that were lost or timed out, no more
    rows are asked, and `given_up` says why.
    """

    def __init__(self, rows: Sequence[Row], *, concurrency: int = 1) -> None:
        """`concurrency` is how many rows are asked at once; above 1 they wait for each other on the server."""
        self.rows = tuple(rows)
        self.concurrency = concurrency
        self.given_up = ""
        """Why not all rows were asked; empty while all is well."""
        self._outcomes: dict[int, Outcome] = {}
        self._losses = Losses(most=_LOST_AFTER + concurrency - 1, kinds=_LOST)

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of the rows asked so far, in the order of the file."""
        return [self._outcomes[index] for index in sorted(self._outcomes)]

    async def run(self, dialect: Dialect, *, on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> None:
        """Ask all rows, in the order of the file."""
        waiting = iter(enumerate(self.rows))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self.concurrency, len(self.rows))):
                tasks.create_task(self._ask_in_turn(dialect, waiting, on_outcome))

    async def _ask_in_turn(
        self, dialect: Dialect, waiting: Iterator[tuple[int, Row]], on_outcome: Callable[[Outcome], None]
    ) -> None:
        for index, row in waiting:
            if self.given_up:
                return
            try:
                outcome = await ask(dialect, row)
            except DialectError as error:
                self.given_up = str(error)
                return
            self._outcomes[index] = outcome
            on_outcome(outcome)
            if given_up := self._losses.take(outcome.reply):
                self.given_up = given_up
                return
            if outcome.reply.error_kind in _LOST:
                await asyncio.sleep(_RETRY_S)  # a server that restarts is back for the next row


async def ask(dialect: Dialect, row: Row) -> Outcome:
    """Ask for one row's hole; what goes wrong with this row alone is in the outcome. Raises DialectError."""
    is_line = is_single_line(row.canonical_solution)
    loop = asyncio.get_running_loop()
    text, times_s = "", list[float]()

    def is_stopped() -> bool:
        return is_line and has_first_line(text)

    def on_text(part: str) -> None:
        nonlocal text
        if not part or is_stopped():
            return
        text += part
        times_s.append(time.perf_counter() - began_s)
        if is_stopped():
            # Not at once: the end of an answer that was already whole follows right behind, and says where it is from.
            loop.call_later(_END_S, asking.cancel)

    began_s = time.perf_counter()
    asking = asyncio.ensure_future(dialect.complete(query_of(row), deadline_s=DEADLINE_S, on_text=on_text))
    try:
        reply = await asking
    except asyncio.CancelledError:
        current = asyncio.current_task()
        assert current is not None, "inside a task"
        if current.cancelling() or not is_stopped():
            raise
        reply = Reply(text=text, source=MODEL_SOURCE)  # only a model is still writing then
    if is_stopped():
        # What was wanted had come; what became of the rest does not matter.
        reply = msgspec.structs.replace(reply, is_cut_short=False, error=None, error_kind=None)
    else:
        text = reply.text
        times_s.append(time.perf_counter() - began_s)
    return Outcome(
        row=row,
        answer=first_line(text) if is_line else text,
        first_text_s=times_s[0] if text else None,
        total_s=times_s[-1],
        reply=reply,
    )


def query_of(row: Row) -> Query:
    """Return what a server is asked for a row."""
    num_bytes = len(row.canonical_solution.encode("utf-8"))
    return Query(
        before=row.prompt,
        after=row.suffix,
        path=row.path or "",
        language=row.language or "",
        context=tuple(ContextChunk(path=each.path, text=each.text) for each in row.context or ()),
        max_tokens=min(num_bytes + _SPARE_TOKENS, MOST_TOKENS),
    )


def summarise(evaluation: Evaluation, read: Rows, *, command: str) -> report.Result:
    """Return the result of a run over rows of a file, whether it came to its end or not."""
    outcomes = evaluation.outcomes
    return report.assemble(
        _headline(outcomes, len(read.skipped)),
        [_row_of(outcome) for outcome in outcomes],
        command=command,
        notes=_notes(evaluation, read),
        is_partial=len(outcomes) < len(evaluation.rows),
    )


def first_texts_ms(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Return the times to the first text by source."""
    times: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.reply.error is None and outcome.first_text_s is not None:
            times.setdefault(_source(outcome), []).append(outcome.first_text_s * 1e3)
    return times


def count_sources(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many answers each source gave; what failed is a source of its own."""
    return dict(Counter(_source(outcome) for outcome in outcomes).most_common())


def language_key(language: str) -> str:
    """Return a language's name as it stands in the names of figures."""
    plain = language.strip().lower()
    return _LANGUAGES.get(plain) or re.sub(r"[^a-z0-9]+", "_", plain).strip("_") or "unnamed"


def _headline(outcomes: Sequence[Outcome], num_skipped: int) -> dict[str, report.Number]:
    by_language: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.row.language:
            by_language.setdefault(language_key(outcome.row.language), []).append(outcome)
    answers = [outcome for outcome in outcomes if outcome.reply.error is None]
    times_ms = [outcome.first_text_s * 1e3 for outcome in answers if outcome.first_text_s is not None]
    return {
        "exact_match": _mean([outcome.is_exact_match for outcome in outcomes]),
        "edit_similarity": _mean([outcome.edit_similarity for outcome in outcomes]),
        "rows": len(outcomes),
        **{
            f"exact_match_{language}": _mean([outcome.is_exact_match for outcome in group])
            for language, group in sorted(by_language.items())
        },
        "first_text_p50_ms": _percentile(times_ms, 50),
        "first_text_p95_ms": _percentile(times_ms, 95),
        "empty_answers": len(answers) - len(times_ms),
        "errors": len(outcomes) - len(answers),
        "skipped": num_skipped,
    }


def _row_of(outcome: Outcome) -> dict[str, Any]:
    row, reply = outcome.row, outcome.reply
    return {
        "line": row.line,
        "task_id": row.task_id,
        "language": row.language,
        "is_exact_match": outcome.is_exact_match,
        "edit_similarity": outcome.edit_similarity,
        "solution": row.canonical_solution,
        "answer": outcome.answer,
        "source": reply.source,
        "first_text_ms": outcome.first_text_s and outcome.first_text_s * 1e3,
        "total_ms": outcome.total_s * 1e3,
        "is_cut_short": reply.is_cut_short,
        "error": reply.error,
        "error_kind": reply.error_kind,
    }


def _notes(evaluation: Evaluation, read: Rows) -> list[str]:
    outcomes = evaluation.outcomes
    notes = []
    if (num_unasked := len(evaluation.rows) - len(outcomes)) > 0:
        notes.append(f"not asked: {num_unasked:,} rows; {evaluation.given_up or 'the run was interrupted'}")
    if len(evaluation.rows) < len(read.usable):
        notes.append(
            f"rows: {len(evaluation.rows):,} of the {len(read.usable):,} usable ones, "
            "a random sample that is always the same"
        )
    if outcomes:
        low, high = _interval(sum(outcome.is_exact_match for outcome in outcomes), len(outcomes))
        notes.append(f"exact_match: {low:.3f} to {high:.3f} with 95 % confidence, for rows drawn like these")
    errors = [outcome.reply.error for outcome in outcomes if outcome.reply.error is not None]
    notes += report.error_notes([("counted as wrong", error) for error in errors])
    reasons = sorted(group_by_reason(read.skipped).items(), key=lambda item: -len(item[1]))
    for reason, lines in reasons[:_SHOWN]:
        shown = ", ".join(map(str, lines[:_SHOWN])) + (", ..." if len(lines) > _SHOWN else "")
        notes.append(f"skipped: {len(lines):,} x {reason} (line {shown})")
    if len(reasons) > _SHOWN:
        notes.append(f"skipped for {len(reasons) - _SHOWN:,} more reasons")
    if evaluation.concurrency > 1:
        notes.append(f"first_text: measured with {evaluation.concurrency} requests at once")
    if stored := sum(not outcome.reply.is_from_model for outcome in outcomes):
        notes.append(f"first_text: {stored:,} answers came without the model")
    return notes


def _source(outcome: Outcome) -> str:
    if outcome.reply.error is not None:
        return "error"
    return outcome.reply.source or "not said"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _interval(num_right: int, num_all: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z = 1.96
    share = num_right / num_all
    middle = share + z * z / (2 * num_all)
    spread = z * math.sqrt(share * (1 - share) / num_all + (z / (2 * num_all)) ** 2)
    scale = 1 + z * z / num_all
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
