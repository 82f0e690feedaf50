"""Batches of rows, made ahead of the steps that read them: in a thread, or in processes where steps are faster.

A batch is a function of its step alone (`examples.py`), so it does not matter who makes it. Knows no model and no JAX:
processes that only make rows start fast and leave the device alone.
"""

import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer

from engine.training.config import TrainingConfig
from engine.training.corpus import load_documents
from engine.training.examples import ExampleMaker

_NUM_AHEAD = 4


class Batch(NamedTuple):
    """Rows of one step: `tokens [B, T + 1]`, `kinds [B, T + 1]`."""

    tokens: np.ndarray
    kinds: np.ndarray


def stack(examples: ExampleMaker, indices: range, length: int) -> Batch:
    """Return rows `indices` of `length + 1` tokens."""
    rows = [examples.row(index, length) for index in indices]
    return Batch(np.stack([row.tokens for row in rows]), np.stack([row.kinds for row in rows]))


class BatchMaker(Protocol):
    """Makes batches, now or later."""

    num_ahead: int
    """Batches worth asking for before the first is taken."""

    def submit(self, indices: range, length: int) -> "Future[Batch]":
        """Ask for rows `indices` of `length + 1` tokens."""


class InlineBatches:
    """Makes each batch when it is asked for."""

    num_ahead = 1

    def __init__(self, examples: ExampleMaker) -> None:
        self._examples = examples

    def submit(self, indices: range, length: int) -> "Future[Batch]":
        """Make the batch before returning."""
        made: Future[Batch] = Future()
        made.set_result(stack(self._examples, indices, length))
        return made


class ProcessBatches:
    """Makes batches in processes that each read corpus and vocabulary from the work folder. Close it at the end."""

    def __init__(self, work: Path, config: TrainingConfig, num_processes: int) -> None:
        self.num_ahead = 2 * num_processes
        self._pool = ProcessPoolExecutor(
            num_processes, multiprocessing.get_context("spawn"), initializer=_start_process, initargs=(work, config)
        )

    def submit(self, indices: range, length: int) -> "Future[Batch]":
        """Have a process make the batch."""
        return self._pool.submit(_make_in_process, indices, length)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


_process_examples: list[ExampleMaker] = []
"""In a process of `ProcessBatches`: its one maker, since an initializer can leave it nowhere else."""


def _start_process(work: Path, config: TrainingConfig) -> None:
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    _process_examples[:] = [
        ExampleMaker(load_documents(work), tokenizer, config.examples, split="train", seed=config.seed)
    ]


def _make_in_process(indices: range, length: int) -> Batch:
    return stack(_process_examples[0], indices, length)


class Prefetch:
    """Makes the batches of the coming steps in a thread, few ahead; leaving the context ends the thread."""

    def __init__(self, maker: BatchMaker, *, first_step: int, num_rows: int, length: int) -> None:
        self._maker = maker
        self._first_step = first_step
        self._num_rows = num_rows
        self._length = length
        self._batches: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_NUM_AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._make, name="examples", daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self._thread.start()
        return self._take()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        while self._thread.is_alive():
            try:
                self._batches.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread.join()

    def _take(self) -> Iterator[Batch]:
        while True:
            batch = self._batches.get()
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def _make(self) -> None:
        step = self._first_step
        try:
            asked: deque[Future[Batch]] = deque()
            while not self._ended.is_set():
                while len(asked) < self._maker.num_ahead:
                    rows = range(step * self._num_rows, (step + 1) * self._num_rows)
                    asked.append(self._maker.submit(rows, self._length))
                    step += 1
                self._batches.put(asked.popleft().result())
        except Exception as error:  # the thread's boundary: the loop raises it
            self._batches.put(error)
