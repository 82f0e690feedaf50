"""A runner whose next token can be computed by hand: a hash of every token up to and including the last one.

It keeps the tokens of each slot as a device keeps their KV, so a wrong slot, position or reuse changes what comes out.
"""

from collections.abc import Sequence as Rows

import numpy as np

from engine.errors import StepError
from engine.runner import Choice, Row


def next_token(tokens: list[int], choices: Rows[int]) -> int:
    """The token that follows `tokens`, out of `choices`."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return int(choices[state % len(choices)])


def completion_of(
    prompt: Rows[int], choices: Rows[int], count: int, *, stop: frozenset[int] = frozenset()
) -> list[int]:
    """What a sequence produces when it runs alone, without healing."""
    tokens, produced = list(prompt), []
    while len(produced) < count:
        produced.append(next_token(tokens, choices))
        tokens.append(produced[-1])
        if produced[-1] in stop:
            break
    return produced


class CountingRunner:
    """Plays a device; `fails` makes the next run raise StepError."""

    def __init__(self, choices: Rows[int]) -> None:
        self.choices = choices
        self.kv: dict[int, list[int]] = {}
        self.fails = False
        self.computed_tokens = 0
        self.runs: list[list[int]] = []
        """Slots of each run."""

    @property
    def num_recompiles(self) -> int:
        return 0

    def run(self, rows: Rows[Row]) -> list[Choice]:
        if self.fails:
            self.fails = False
            raise StepError("the device is out of order")
        self.runs.append([row.slot for row in rows])
        return [self._run_row(row) for row in rows]

    def reset(self) -> None:
        self.kv.clear()

    def _run_row(self, row: Row) -> Choice:
        held = self.kv.setdefault(row.slot, [])
        assert row.start <= len(held), "a gap in the KV"
        held[row.start :] = map(int, row.tokens)
        self.computed_tokens += len(row.tokens)
        token = next_token(held, self.choices if row.allowed is None else np.asarray(row.allowed).tolist())
        return Choice(token, float(token))
