import msgspec
import numpy as np
import pytest

from engine.training.batches import Batch, InlineBatches, Prefetch, ProcessBatches, stack
from engine.training.examples import ExampleMaker
from engine.training.vocabulary import save_vocabulary


@pytest.fixture
def examples(documents, tokenizer, config) -> ExampleMaker:
    return ExampleMaker(documents, tokenizer, config.examples, split="train", seed=config.seed)


def assert_same(one: Batch, other: Batch) -> None:
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def test_processes_make_the_rows_that_a_thread_makes_in_their_order(
    documents, tokenizer, config, examples, tmp_path
) -> None:
    (tmp_path / "documents.msgpack").write_bytes(msgspec.msgpack.encode(documents))
    save_vocabulary(tokenizer, tmp_path / "tokenizer.json")
    pool = ProcessBatches(tmp_path, config, 2)
    try:
        with Prefetch(pool, first_step=3, num_rows=2, length=64) as batches:
            for step in range(3, 9):
                assert_same(next(batches), stack(examples, range(2 * step, 2 * step + 2), 64))
    finally:
        pool.close()


def test_leaving_early_ends_the_thread(examples) -> None:
    prefetch = Prefetch(InlineBatches(examples), first_step=0, num_rows=2, length=64)
    with prefetch as batches:
        next(batches)
    assert not prefetch._thread.is_alive()


def test_a_failure_while_making_examples_reaches_the_loop() -> None:
    class Broken:
        def row(self, index: int, length: int) -> None:
            raise ValueError(f"row {index}")

    with (
        Prefetch(InlineBatches(Broken()), first_step=3, num_rows=2, length=8) as batches,
        pytest.raises(ValueError, match="row 6"),
    ):
        next(batches)
