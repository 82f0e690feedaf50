import io
import itertools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from rich.console import Console

from engine.training.batches import InlineBatches
from engine.training.checkpoint import CheckpointStore
from engine.training.config import TrainingConfig
from engine.training.examples import ExampleMaker
from engine.training.trainer import (
    Log,
    Progress,
    Trainer,
    initial_params,
    learning_rate_scale,
    mean_losses,
    product_dtype,
)

QUIET = Console(quiet=True)


@pytest.fixture
def make_trainer(documents, tokenizer, config, tmp_path):
    """Build trainers in named folders; their stores are closed at the end."""
    stores = []

    def make(folder: str, config: TrainingConfig = config) -> Trainer:
        store = CheckpointStore(tmp_path / folder / "checkpoints")
        stores.append(store)
        examples, held_out = (
            ExampleMaker(documents, tokenizer, config.examples, split=split, seed=1) for split in ("train", "held-out")
        )
        return Trainer(config, InlineBatches(examples), held_out, store, tmp_path / folder / "log.jsonl")

    yield make
    for store in stores:
        store.close()


def assert_same_state(one: Trainer, other: Trainer) -> None:
    for left, right in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_bar_shows_how_far_a_phase_is(make_trainer) -> None:
    shown = io.StringIO()
    make_trainer("bar").run(num_steps=2, console=Console(file=shown, force_terminal=True, width=100))
    assert "stable 2" in shown.getvalue()
    assert "100%" in shown.getvalue()


def test_a_resumed_run_equals_an_uninterrupted_one_through_both_phases(make_trainer, tmp_path) -> None:
    whole = make_trainer("whole")
    whole.run(num_steps=4, console=QUIET)
    whole.begin_decay(num_steps=2)
    whole.run(num_steps=2, console=QUIET)
    assert whole.is_done

    make_trainer("parts").run(num_steps=3, console=QUIET)
    second = make_trainer("parts")
    assert second.resume()
    assert second.progress.step == 3
    second.run(num_steps=4, console=QUIET)
    second.begin_decay(num_steps=2)
    second.run(num_steps=1, console=QUIET)
    third = make_trainer("parts")
    assert third.resume()
    assert (third.progress.phase, third.progress.phase_step) == ("decay", 1)
    third.begin_decay(num_steps=9)
    third.run(console=QUIET)

    assert third.is_done
    assert_same_state(whole, third)
    assert third.progress.num_tokens == whole.progress.num_tokens == 4 * 2 * 64 + 2 * 128
    lines = [
        msgspec.json.decode(line, type=Log) for line in (tmp_path / "whole" / "log.jsonl").read_bytes().splitlines()
    ]
    assert [line.step for line in lines] == [2, 4, 6]
    assert all(line.held_out_hole_loss for line in lines)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(make_trainer, monkeypatch, caplog) -> None:
    trainer = make_trainer("full")
    trainer.run(num_steps=1, console=QUIET)

    def refuse(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(trainer._store, "save", refuse)
    trainer.run(num_steps=2, console=QUIET)
    assert "no checkpoint at step 2: No space left on device" in caplog.text
    again = make_trainer("full")
    assert again.resume()
    assert again.progress.step == 1


def test_half_a_checkpoint_of_a_killed_run_is_not_taken_for_one(make_trainer, tmp_path) -> None:
    make_trainer("killed").run(num_steps=1, console=QUIET)
    half = tmp_path / "killed" / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").write_bytes(b"half")
    again = make_trainer("killed")
    assert again.resume()
    assert again.progress.step == 1


def test_a_few_steps_lower_the_loss(make_trainer) -> None:
    trainer = make_trainer("learning")
    before, _ = trainer.measure_held_out()
    trainer.run(num_steps=30, console=QUIET)
    after, _ = trainer.measure_held_out()
    assert after < before - 0.5


def test_scores_in_chunks_give_the_same_loss(config) -> None:
    model = config.shape.resolve()
    params = initial_params(model, 0)
    tokens = jnp.arange(2 * 41).reshape(2, 41) + 7
    kinds = jnp.ones((2, 41), jnp.int8).at[:, 30:].set(2).at[0, :5].set(0)
    chunked = msgspec.structs.replace(config, loss_chunk_tokens=32)
    whole = mean_losses(config, model, params, tokens, kinds)
    np.testing.assert_allclose(mean_losses(chunked, model, params, tokens, kinds), whole, rtol=1e-5)


def test_steps_in_bfloat16_lower_the_loss_as_those_in_float32_do(make_trainer, config) -> None:
    after = []
    for products in ("float32", "bfloat16"):
        trainer = make_trainer(products, msgspec.structs.replace(config, products=products))
        assert jnp.dtype(product_dtype(trainer.config)) == products
        trainer.run(num_steps=10, console=QUIET)
        after.append(trainer.measure_held_out()[0])
    np.testing.assert_allclose(after[1], after[0], rtol=0.02)


def test_a_run_that_begins_with_trained_weights_warms_up_and_reads_other_rows(make_trainer) -> None:
    first = make_trainer("first")
    first.run(num_steps=4, console=QUIET)
    second = make_trainer("second")
    second.begin_from(jax.tree.map(np.asarray, first.state.params), first.progress.num_tokens)
    assert learning_rate_scale(second.config, second.progress) == 0.5
    read = []
    submit = second._batches.submit
    second._batches.submit = lambda indices, length: read.append(indices) or submit(indices, length)
    second.run(num_steps=2, console=QUIET)
    assert read[0] == range(8, 10), "rows 0 to 7 were read before"
    assert second.progress.num_tokens == first.progress.num_tokens + 2 * 2 * 64
    assert second.progress.step == 2


def test_the_learning_rate_warms_up_stays_and_falls(config) -> None:
    stable = [learning_rate_scale(config, Progress(step=step)) for step in range(4)]
    assert stable == [0.5, 1.0, 1.0, 1.0]
    decay = [learning_rate_scale(config, Progress(phase="decay", phase_step=step, decay_steps=4)) for step in range(5)]
    assert decay == [1.0, 0.75, 0.5, 0.25, 0.01]
    timed = [learning_rate_scale(config, Progress(phase="decay", phase_s=s, decay_s=20.0)) for s in (0.0, 5.0, 30.0)]
    assert timed == [1.0, 0.75, 0.01]


def test_a_phase_with_a_time_ends_with_it(make_trainer, monkeypatch) -> None:
    clock = itertools.count(step=0.5)
    monkeypatch.setattr("engine.training.trainer.time.monotonic", lambda: float(next(clock)))
    trainer = make_trainer("timed")
    trainer.run(num_s=5.0, console=QUIET)
    assert 5.0 <= trainer.progress.phase_s < 10.0
    num_stable = trainer.progress.phase_step
    assert num_stable > 1
    trainer.begin_decay(num_s=100.0)
    trainer.run(num_steps=1, console=QUIET)
    assert not trainer.is_done
    trainer.begin_decay(num_s=4.0)
    trainer.run(console=QUIET)
    assert trainer.is_done
    assert 4.0 <= trainer.progress.phase_s < 9.0
