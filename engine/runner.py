"""Runs steps on the device: holds the weights and the resident KV, and decides nothing.

The host hands over plain numbers, the device hands back one integer array: the token of every row, and the bits of
its logit gap.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from engine.errors import StepError
from engine.model.attention import Attention
from engine.model.config import ModelConfig
from engine.plan import EnginePlan
from engine.programs import Batch, Programs, make_kv
from engine.types import SamplingParams

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One sequence's part of a step: compute `tokens` from position `start` of `slot` on, then choose the next."""

    slot: int
    start: int
    tokens: Rows[int] | np.ndarray
    sampling: SamplingParams
    num_generated: int
    """How many tokens the sequence has produced."""
    allowed: np.ndarray | None = None
    """Ids that may come next, int32; None allows every token."""


class Choice(NamedTuple):
    """The token chosen for a row."""

    token: int
    logit_gap: float
    """Distance between the two best scores that were allowed."""


class Runner(Protocol):
    """What the engine needs of a runner."""

    def run(self, rows: Rows[Row]) -> list[Choice]:
        """Compute the rows in one program, all of one width if there are several; choose each row's next token."""

    def reset(self) -> None:
        """Forget all KV, after a step that failed."""

    @property
    def num_recompiles(self) -> int:
        """Programs compiled after warm-up."""


class DeviceRunner:
    """The runner of a real model."""

    def __init__(
        self,
        *,
        graphdef: nnx.GraphDef[Any],
        weights: Any,
        config: ModelConfig,
        plan: EnginePlan,
        attention: Attention,
        num_tokens: int,
        compiler_options: dict[str, str | bool] | None = None,
    ) -> None:
        """`num_tokens`: ids from here to V exist in the model only, and are never chosen."""
        self._config, self._plan = config, plan
        self._programs = Programs(graphdef, weights, config, plan, attention, compiler_options)
        self._kv = make_kv(config, plan)
        every = np.zeros(config.vocab_size, bool)
        every[:num_tokens] = True
        self._every = np.packbits(every, bitorder="little")
        self._every_rows = {rows: np.tile(self._every, (rows, 1)) for rows in (1, *plan.row_buckets)}

    @property
    def num_recompiles(self) -> int:
        return self._programs.num_recompiles

    def warm_up(self, on_progress: Callable[[str], None]) -> None:
        """Compile every program and run each once on empty rows."""
        self._programs.compile_all(on_progress)
        for rows, width in self._programs.shapes():
            self._call(_empty_batch(rows, width, self._every_rows[rows]))

    def run(self, rows: Rows[Row]) -> list[Choice]:
        widest = max(len(row.tokens) for row in rows)
        num_rows = next(bucket for bucket in self._plan.row_buckets if bucket >= len(rows))
        width = 1 if widest == 1 else next(bucket for bucket in self._plan.chunk_buckets if bucket >= widest)
        batch = _empty_batch(num_rows, width, self._every_rows[num_rows])
        for i, row in enumerate(rows):
            batch.tokens[i, : len(row.tokens)] = row.tokens
            batch.slots[i], batch.starts[i], batch.counts[i] = row.slot, row.start, len(row.tokens)
            batch.num_generated[i], batch.seed[i] = row.num_generated, row.sampling.seed & 0xFFFFFFFF
            batch.temperature[i] = row.sampling.temperature
            batch.top_k[i], batch.top_p[i] = row.sampling.top_k, row.sampling.top_p
        if any(row.allowed is not None for row in rows):
            batch = batch._replace(allowed=self._pack_allowed(rows, num_rows))
        tokens, gap_bits = self._call(batch)
        return list(map(Choice, tokens[: len(rows)].tolist(), gap_bits.view(np.float32)[: len(rows)].tolist()))

    def reset(self) -> None:
        self._kv = make_kv(self._config, self._plan)

    def _pack_allowed(self, rows: Rows[Row], num_rows: int) -> np.ndarray:
        packed = self._every_rows[num_rows].copy()
        for i, row in enumerate(rows):
            if row.allowed is not None:
                bits = np.zeros(self._config.vocab_size, bool)
                bits[row.allowed] = True
                packed[i] = np.packbits(bits, bitorder="little")
        return packed

    def _call(self, batch: Batch) -> np.ndarray:
        try:
            self._kv, chosen = self._programs.get(*batch.tokens.shape)(self._programs.leaves, self._kv, batch)
            return np.asarray(chosen)
        except jax.errors.JaxRuntimeError as error:
            raise StepError(f"the device program of {batch.tokens.shape} tokens failed: {error}") from error


def _empty_batch(rows: int, width: int, allowed: np.ndarray) -> Batch:
    ints = [np.zeros(rows, np.int32) for _ in range(4)]
    return Batch(
        tokens=np.zeros((rows, width), np.int32),
        slots=np.full(rows, -1, np.int32),
        starts=ints[0],
        counts=ints[1],
        temperature=np.zeros(rows, np.float32),
        top_k=ints[2],
        top_p=np.ones(rows, np.float32),
        seed=np.zeros(rows, np.uint32),
        num_generated=ints[3],
        allowed=allowed,
    )
