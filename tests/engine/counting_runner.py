"""A runner whose next token can be computed by hand: a hash of every token up to and including the last one.

It keeps the tokens of each slot as a device keeps their KV, so a wrong slot, position or reuse changes what comes out.
"""

from collections.abc import Sequence as Rows

import numpy as np

from engine.errors import StepError
from engine.model.block_sparse import Report
from engine.prefix_store import BLOCK_TOKENS, BlockCopy
from engine.runner import Choice, Row
from engine.shapes import Shape


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
        self.store: dict[int, list[int]] = {}
        self.fails = False
        self.computed_tokens = 0
        self._was_sparse = False
        self.runs: list[tuple[Shape, list[int]]] = []
        """Shape and slots of each run."""

    @property
    def last_report(self) -> Report:
        """What a chunk that is told to be sparse keeps: half of its blocks."""
        return Report(5, 10, 0.9, 1, 0) if self._was_sparse else Report()

    @property
    def num_recompiles(self) -> int:
        return 0

    def run(self, shape: Shape, rows: Rows[Row], chunk: Row | None = None) -> list[list[Choice]]:
        if self.fails:
            self.fails = False
            raise StepError("the device is out of order")
        assert len(rows) <= shape.rows, "more rows than the shape has"
        assert all(len(row.tokens) <= shape.width and row.num_wanted <= shape.num_scored for row in rows)
        assert (chunk is not None) == (shape.chunk > 0)
        assert chunk is None or len(chunk.tokens) <= shape.chunk
        self._was_sparse = chunk is not None and chunk.focus is not None
        every = [*rows, *([] if chunk is None else [chunk])]
        self.runs.append((shape, [row.slot for row in every]))
        return [self._run_row(row) for row in every]

    def copy_blocks(self, saves: Rows[BlockCopy], loads: Rows[BlockCopy]) -> None:
        for slot, position, block in saves:
            self.store[block] = self.kv[slot][position : position + BLOCK_TOKENS]
            assert len(self.store[block]) == BLOCK_TOKENS, "saved a block that is not there"
        for slot, position, block in loads:
            held = self.kv.setdefault(slot, [])
            assert position <= len(held), "a gap in the KV"
            held[position:] = self.store[block]

    def reset(self) -> None:
        self.kv.clear()
        self.store.clear()

    def _run_row(self, row: Row) -> list[Choice]:
        held = self.kv.setdefault(row.slot, [])
        assert row.start <= len(held), "a gap in the KV"
        held[row.start :] = map(int, row.tokens)
        self.computed_tokens += len(row.tokens)
        choices = []
        for i in range(row.num_wanted):
            end = len(held) - row.num_wanted + 1 + i
            allowed = self.choices if i or row.allowed is None else np.asarray(row.allowed).tolist()
            token = next_token(held[:end], allowed)
            choices.append(Choice(token, float(token)))
        return choices
