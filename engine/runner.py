"""Runs steps on the device: holds the weights, the resident KV and the prefix store's KV, and decides nothing.

The host hands over plain numbers, the device hands back one integer array: the tokens chosen, and the bits of their
logit gaps.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import NamedTuple, Protocol

import jax
import numpy as np

from engine.errors import StepError
from engine.model.block_sparse import Report, Selection
from engine.model.config import ModelConfig
from engine.plan import EnginePlan
from engine.prefix_store import BlockCopy
from engine.programs import COPIES, Batch, Programs
from engine.shapes import Shape
from engine.types import SamplingParams

_WARM_RUNS = 3
"""Each program runs so often at start; the fastest is its first cost."""


class Row(NamedTuple):
    """One sequence's part of a step: compute `tokens` from position `start` of `slot` on, then choose successors."""

    slot: int
    start: int
    tokens: Rows[int]
    sampling: SamplingParams
    num_generated: int
    """How many tokens the sequence has produced."""
    num_wanted: int = 1
    """Of how many of the last `tokens` the successor is wanted: 1, and one more for each token of a draft."""
    allowed: np.ndarray | None = None
    """Ids that may come as the first successor wanted, int32; None allows every token."""
    focus: tuple[int, int] | None = None
    """Of a chunk with block-sparse attention: the positions around the cut and the cursor. None: dense."""


class Choice(NamedTuple):
    """The token chosen as a successor."""

    token: int
    logit_gap: float
    """Distance between the two best scores that were allowed."""


class Runner(Protocol):
    """What the engine needs of a runner."""

    def run(self, shape: Shape, rows: Rows[Row], chunk: Row | None = None) -> list[list[Choice]]:
        """Compute rows and chunk in the program of this shape; return the successors wanted, the chunk's last."""

    def copy_blocks(self, saves: Rows[BlockCopy], loads: Rows[BlockCopy]) -> None:
        """Copy KV from slots into the prefix store, then from the store into slots."""

    def reset(self) -> None:
        """Forget all KV, after a step that failed."""

    @property
    def last_report(self) -> Report:
        """What block-sparse attention kept in the last run."""

    @property
    def num_recompiles(self) -> int:
        """Programs compiled after warm-up."""


class DeviceRunner:
    """The runner of a real model."""

    def __init__(self, *, config: ModelConfig, plan: EnginePlan, programs: Programs) -> None:
        """`programs` may serve other runners too: they hold the weights and no KV."""
        self._config, self._plan, self._programs = config, plan, programs
        self._last_report = Report()
        self._kv, self._store = programs.make_kv(), programs.make_store()
        every = np.zeros(config.vocab_size, bool)
        every[: programs.num_tokens] = True
        every_bits = np.packbits(every, bitorder="little")
        self._every = {shape: np.tile(every_bits, (shape.num_sequences, 1)) for shape in plan.shapes.shapes()}

    @property
    def last_report(self) -> Report:
        return self._last_report

    @property
    def num_recompiles(self) -> int:
        return self._programs.num_recompiles

    def warm_up(self, on_progress: Callable[[str], None]) -> dict[Shape, float]:
        """Compile every program and run each on empty rows; return the seconds that each takes."""
        self._programs.compile_all(on_progress)
        seconds = {}
        for shape in self._plan.shapes.shapes():
            batch, times = self.empty_batch(shape), []
            for _ in range(_WARM_RUNS):
                began = time.perf_counter()
                self._call(shape, batch)
                times.append(time.perf_counter() - began)
            seconds[shape] = min(times)
        nowhere = [BlockCopy(0, 0, 0)] * bool(self._plan.num_blocks)
        self.copy_blocks(nowhere, nowhere)
        return seconds

    def run(self, shape: Shape, rows: Rows[Row], chunk: Row | None = None) -> list[list[Choice]]:
        batch = self.empty_batch(shape)
        places = [*enumerate(rows), *([] if chunk is None else [(shape.rows, chunk)])]
        for i, row in places:
            batch.tokens[i * shape.width :][: len(row.tokens)] = row.tokens
            batch.slots[i], batch.starts[i], batch.counts[i] = row.slot, row.start, len(row.tokens)
            batch.num_wanted[i], batch.num_generated[i] = row.num_wanted, row.num_generated
            batch.seed[i], batch.temperature[i] = row.sampling.seed & 0xFFFFFFFF, row.sampling.temperature
            batch.top_k[i], batch.top_p[i] = row.sampling.top_k, row.sampling.top_p
        if any(row.allowed is not None for _, row in places):
            batch = batch._replace(allowed=self._pack_allowed(shape, places))
        if chunk is not None and chunk.focus is not None:
            selection = Selection(1, len(chunk.tokens), *chunk.focus, self._plan.sparse_blocks)
            batch = batch._replace(selection=np.array(selection, np.int32))
        packed = self._call(shape, batch)
        self._last_report = Report()
        if self._programs.sparse_attention is not None and shape.chunk:
            size = len(Report._fields)
            self._last_report = Report(*packed[0, -size:].view(np.float32).tolist())
            packed = packed[:, :-size]
        tokens, gap_bits = packed
        choices = list(map(Choice, tokens.tolist(), gap_bits.view(np.float32).tolist()))
        ends = [min((i + 1) * shape.num_scored, len(choices)) if i < shape.rows else len(choices) for i, _ in places]
        return [choices[end - row.num_wanted : end] for end, (_, row) in zip(ends, places, strict=True)]

    def copy_blocks(self, saves: Rows[BlockCopy], loads: Rows[BlockCopy]) -> None:
        try:
            for i in range(0, len(saves), COPIES):
                self._store = self._programs.save_blocks(self._store, self._kv, *_columns(saves[i : i + COPIES]))
            for i in range(0, len(loads), COPIES):
                self._kv = self._programs.load_blocks(self._kv, self._store, *_columns(loads[i : i + COPIES]))
        except jax.errors.JaxRuntimeError as error:
            raise StepError(f"moving blocks of KV failed: {error}") from error

    def reset(self) -> None:
        self._kv, self._store = self._programs.make_kv(), self._programs.make_store()

    def _pack_allowed(self, shape: Shape, places: Rows[tuple[int, Row]]) -> np.ndarray:
        packed = self._every[shape].copy()
        for i, row in places:
            if row.allowed is not None:
                bits = np.zeros(self._config.vocab_size, bool)
                bits[row.allowed] = True
                packed[i] = np.packbits(bits, bitorder="little")
        return packed

    def call(self, shape: Shape, batch: Batch) -> np.ndarray:
        """Call the program of a shape; return what it chose, int32 `[2, scored]`; raises StepError."""
        return self._call(shape, batch)

    def _call(self, shape: Shape, batch: Batch) -> np.ndarray:
        try:
            self._kv, chosen = self._programs.get(shape)(self._programs.leaves, self._kv, batch)
            return np.asarray(chosen)
        except jax.errors.JaxRuntimeError as error:
            raise StepError(f"the device program of {shape} failed: {error}") from error

    def empty_batch(self, shape: Shape) -> Batch:
        """Return a batch whose every sequence is empty."""
        size = shape.num_sequences
        return Batch(
            tokens=np.zeros(shape.num_tokens, np.int32),
            slots=np.full(size, -1, np.int32),
            starts=np.zeros(size, np.int32),
            counts=np.zeros(size, np.int32),
            num_wanted=np.ones(size, np.int32),
            temperature=np.zeros(size, np.float32),
            top_k=np.zeros(size, np.int32),
            top_p=np.ones(size, np.float32),
            seed=np.zeros(size, np.uint32),
            num_generated=np.zeros(size, np.int32),
            allowed=self._every[shape],
            selection=np.array(Selection(), np.int32),
        )


def _columns(copies: Rows[BlockCopy]) -> tuple[np.ndarray, ...]:
    """Return how many there are, and slots, positions and blocks, int32 `[COPIES]`."""
    padded = np.zeros((3, COPIES), np.int32)
    padded[:, : len(copies)] = np.array(copies, np.int32).T
    return np.array(len(copies), np.int32), *padded
