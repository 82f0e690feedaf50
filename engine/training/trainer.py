"""The trainer: a jitted step over plain arrays, and the loop that feeds it, measures, and keeps checkpoints.

Learns by Muon (hidden matrices) and AdamW (embedding and norms) on a warm-up, stable, decay schedule: the stable phase
may stop anywhere, and the decay phase starts from whatever checkpoint is last. Rows are functions of the seed and
their index and the checkpoint holds everything else, so a run killed at any moment goes on as if it never stopped.

The same code runs in float32 on a CPU and, with weights kept in float32, in bfloat16 on a GPU.
"""

import functools
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import Progress as ProgressBar

from engine.model.config import ModelConfig
from engine.model.transformer import Transformer, rope_table
from engine.training.batches import Batch, BatchMaker, Prefetch, stack
from engine.training.checkpoint import CheckpointStore
from engine.training.config import TrainingConfig
from engine.training.examples import HOLE, ExampleMaker
from engine.training.muon import scale_by_muon
from engine.training.products import attend_causally_in_blocks, has_fast_bfloat16, multiply, target_losses

logger = logging.getLogger(__name__)

TrainingPhase = Literal["stable", "decay"]
Tree = Any
"""Nested dicts of arrays, as `nnx` names them."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run has come; stored beside the arrays of a checkpoint."""

    phase: TrainingPhase = "stable"
    step: int = 0
    """Steps done in all."""
    phase_step: int = 0
    """Steps done in this phase; with the rows of a step it is the position in the data."""
    phase_s: float = 0.0
    """Seconds spent in this phase, over all resumptions, measurements and checkpoints included."""
    decay_steps: int = 0
    """Steps the decay phase takes; 0 while the phase is stable, and where it has a time instead."""
    decay_s: float = 0.0
    """Seconds the decay phase takes, where that is set instead of its steps."""
    num_tokens: int = 0
    """Tokens read in all, by the weights that the run began with too."""
    num_tokens_before: int = 0
    """Tokens that the weights it began with had read; 0 for fresh ones."""
    training_s: float = 0.0
    """Seconds spent in steps, over all resumptions."""


class Log(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `log.jsonl`. Losses are in nats per token."""

    phase: TrainingPhase
    step: int
    num_tokens: int
    training_s: float
    tokens_per_s: float
    loss: float
    hole_loss: float
    grad_norm: float
    held_out_loss: float | None = None
    held_out_hole_loss: float | None = None
    """The figure of merit: loss on the tokens of holes in projects never trained on."""


class TrainState(NamedTuple):
    """What a step changes; donated to it."""

    params: Tree
    optimizer: Tree


class Metrics(NamedTuple):
    """Sums over one step."""

    loss: jax.Array
    hole_loss: jax.Array
    grad_norm: jax.Array


# --- programs -------------------------------------------------------------------------------------------------------


def initial_params(model: ModelConfig, seed: int) -> Tree:
    """Return fresh weights, float32, as nested dicts."""
    _, state = nnx.split(Transformer(model, rngs=nnx.Rngs(seed)))
    return nnx.to_pure_dict(state)


def merge_params(model: ModelConfig, params: Tree) -> Transformer:
    """Return the module that computes with these weights; free of cost inside a jitted program."""
    module: Transformer = nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, params)
    merged: Transformer = nnx.merge(graph, state)
    return merged


def product_dtype(config: TrainingConfig) -> Any:
    """Return the type that operands of products are rounded to."""
    uses_bfloat16 = has_fast_bfloat16() if config.products == "auto" else config.products == "bfloat16"
    return jnp.bfloat16 if uses_bfloat16 else jnp.float32


def token_losses(config: TrainingConfig, model: ModelConfig, params: Tree, tokens: jax.Array) -> jax.Array:
    """Return the loss of each target token, `[B, T]` float32.

    In bfloat16 a GPU keeps activations in it too; a CPU has nothing to gain from that.
    """
    dtype = product_dtype(config)
    stream_dtype = jnp.float32 if jax.default_backend() == "cpu" else dtype
    module = merge_params(model, jax.tree.map(lambda leaf: leaf.astype(stream_dtype), params))
    if dtype == jnp.bfloat16:
        for layer in module.layers:
            assert layer.gate_up is not None, "the trained family has a gated MLP"
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
                linear.multiply = multiply
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    length = inputs.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), inputs.shape)
    cos, sin = rope_table(model, length)
    attend = functools.partial(attend_causally_in_blocks, dtype=dtype)
    hidden = module(inputs, positions, attend, rope=(jnp.asarray(cos), jnp.asarray(sin))).reshape(-1, model.hidden_size)
    embedding, flat_targets = module.embedding[...], targets.reshape(-1)
    if not config.loss_chunk_tokens:
        return target_losses(hidden, embedding, flat_targets, dtype).reshape(targets.shape)
    chunk = config.loss_chunk_tokens
    losses_of = jax.checkpoint(target_losses, static_argnums=3)
    losses = [
        losses_of(hidden[start : start + chunk], embedding, flat_targets[start : start + chunk], dtype)
        for start in range(0, hidden.shape[0], chunk)
    ]
    return jnp.concatenate(losses).reshape(targets.shape)


def mean_losses(
    config: TrainingConfig, model: ModelConfig, params: Tree, tokens: jax.Array, kinds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the mean loss over all learned tokens, and over those of holes."""
    losses = token_losses(config, model, params, tokens)
    learned = kinds[:, 1:] > 0
    in_hole = kinds[:, 1:] == HOLE
    loss = jnp.sum(losses * learned) / jnp.maximum(jnp.sum(learned), 1)
    hole_loss = jnp.sum(losses * in_hole) / jnp.maximum(jnp.sum(in_hole), 1)
    return loss, hole_loss


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Return Muon for the hidden matrices and AdamW for embedding and norms, after clipping, at full learning rate."""

    def labels(params: Tree) -> Tree:
        def label(path: tuple[Any, ...], leaf: jax.Array) -> str:
            if leaf.ndim == 2:
                return "embedding" if "embedding" in jax.tree_util.keystr(path) else "matrix"
            return "vector"

        return jax.tree_util.tree_map_with_path(label, params)

    adam = {"b1": 0.9, "b2": 0.95}
    transforms: dict[Any, optax.GradientTransformation] = {
        "matrix": optax.chain(
            scale_by_muon(product_dtype(config)),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(config.learning_rate),
        ),
        "embedding": optax.adamw(config.adam_learning_rate, weight_decay=config.weight_decay, **adam),
        "vector": optax.adamw(config.adam_learning_rate, weight_decay=0.0, **adam),
    }
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.partition(transforms, labels))


@functools.cache
def make_step(config: TrainingConfig, model: ModelConfig) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the jitted step `(state, tokens, kinds, rate) -> (state, metrics)`; `state` is donated.

    `rate` scales the whole update: all of them are linear in the learning rate. Kept per configuration: compiling takes
    far longer than a step.
    """
    optimizer = make_optimizer(config)
    losses = mean_losses if not config.remat else jax.checkpoint(mean_losses, static_argnums=(0, 1))

    def step(state: TrainState, tokens: jax.Array, kinds: jax.Array, rate: jax.Array) -> tuple[TrainState, Metrics]:
        objective = jax.value_and_grad(lambda params: losses(config, model, params, tokens, kinds), has_aux=True)
        (loss, hole_loss), gradients = objective(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        updates = jax.tree.map(lambda update: update * rate, updates)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, optimizer_state), Metrics(loss, hole_loss, optax.tree.norm(gradients))

    return jax.jit(step, donate_argnums=0)


@functools.cache
def make_measurement(config: TrainingConfig, model: ModelConfig) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the jitted `(params, tokens, kinds) -> (loss, hole loss)`, kept per configuration."""
    return jax.jit(functools.partial(mean_losses, config, model))


@functools.cache
def make_initial_state(config: TrainingConfig) -> Callable[[], TrainState]:
    """Return the jitted function that makes the state of step 0, kept per configuration."""

    def make() -> TrainState:
        params = initial_params(config.shape.resolve(), config.seed)
        return TrainState(params, make_optimizer(config).init(params))

    return jax.jit(make)


def decayed_share(progress: Progress) -> float:
    """Return how much of the decay phase is over, by its steps or by its time."""
    if progress.decay_s:
        return progress.phase_s / progress.decay_s
    return progress.phase_step / progress.decay_steps


def learning_rate_scale(config: TrainingConfig, progress: Progress) -> float:
    """Return the share of the full learning rate at the coming step: warm-up, stable, then linear to nearly nothing."""
    if progress.phase == "decay":
        return max(1.0 - decayed_share(progress), 0.01)
    return min((progress.step + 1) / max(config.warmup_steps, 1), 1.0)


# --- the loop -------------------------------------------------------------------------------------------------------


class Trainer:
    """One run in one work folder. Invariant: state, progress and data position always belong to the same step."""

    def __init__(
        self, config: TrainingConfig, batches: BatchMaker, held_out: ExampleMaker, store: CheckpointStore, log: Path
    ) -> None:
        self.config = config
        self.model = config.shape.resolve()
        self.progress = Progress()
        self._batches = batches
        self._held_out = held_out
        self._store = store
        self._log = log
        self._step = make_step(config, self.model)
        self._losses = make_measurement(config, self.model)
        self.state = make_initial_state(config)()
        self._held_out_rows: list[Batch] = []

    def resume(self) -> bool:
        """Take up the last checkpoint; False when there is none."""
        restored = self._store.restore_last(self.state)
        if restored is None:
            return False
        self.state = TrainState(*restored.state)
        self.progress = msgspec.json.decode(restored.progress, type=Progress)
        return True

    def begin_from(self, params: Tree, num_tokens: int) -> None:
        """Begin with trained weights that have read `num_tokens`: fresh optimiser state, warm-up, rows not yet read."""
        self.state = TrainState(params, self.state.optimizer)
        self.progress = Progress(num_tokens=num_tokens, num_tokens_before=num_tokens)

    def begin_decay(self, *, num_steps: int = 0, num_s: float = 0.0) -> None:
        """Leave the stable phase: from here on longer rows, and a learning rate that falls with steps or with time.

        In a decay that has begun, the time may still be changed: on a shared machine nobody knows how long it takes.
        """
        assert bool(num_steps) != bool(num_s), "steps or seconds"
        if self.progress.phase == "stable":
            length = {"decay_steps": num_steps, "decay_s": num_s}
            self.progress = msgspec.structs.replace(self.progress, phase="decay", phase_step=0, phase_s=0.0, **length)
        elif num_s:
            self.progress = msgspec.structs.replace(self.progress, decay_s=num_s, decay_steps=0)

    @property
    def is_done(self) -> bool:
        """Whether the decay phase has come to its end."""
        return self.progress.phase == "decay" and decayed_share(self.progress) >= 1.0

    def save(self) -> None:
        """Write a checkpoint; a full disk is reported and the run goes on with its last good checkpoint."""
        try:
            self._store.save(self.progress.step, self.state, msgspec.json.encode(self.progress))
        except (OSError, ValueError) as error:
            logger.warning("no checkpoint at step %d: %s; the one before stays", self.progress.step, error)

    def run(self, *, console: Console, num_steps: int | None = None, num_s: float | None = None) -> bool:
        """Train up to `num_steps` or `num_s` seconds of the phase, a decay no further than to its end; save.

        Returns False when a signal ended it early.
        """
        stopped = threading.Event()
        previous = {
            number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            with ProgressBar(console=console, transient=True) as bar:
                task = bar.add_task(self.progress.phase, total=1.0)
                for done_share in self._loop(num_steps or sys.maxsize, num_s or math.inf, stopped, console):
                    bar.update(task, completed=done_share, description=f"{self.progress.phase} {self.progress.step}")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.save()
        return not stopped.is_set()

    def measure_held_out(self) -> tuple[float, float]:
        """Return mean loss and hole loss on rows of projects never trained on."""
        if not self._held_out_rows:
            count, per_step = self.config.num_held_out_rows, 8
            self._held_out_rows = [
                stack(self._held_out, range(start, min(start + per_step, count)), self.config.row_length)
                for start in range(0, count, per_step)
            ]
        pairs = [self._losses(self.state.params, batch.tokens, batch.kinds) for batch in self._held_out_rows]
        return float(np.mean([pair[0] for pair in pairs])), float(np.mean([pair[1] for pair in pairs]))

    def _loop(self, num_steps: int, num_s: float, stopped: threading.Event, console: Console) -> Iterator[float]:
        """Train, and yield after each step which share of the phase is done."""
        is_decay = self.progress.phase == "decay"
        length = self.config.decay_row_length if is_decay else self.config.row_length
        num_rows = self.config.decay_rows_per_step if is_decay else self.config.rows_per_step
        last_save = last_log = last_end = time.monotonic()
        metrics: list[Metrics] = []
        # Rows of a phase are numbered; the weights a run began with may have read as many of them as they read tokens.
        first_step = self.progress.phase_step + self.progress.num_tokens_before // (num_rows * length)
        with Prefetch(self._batches, first_step=first_step, num_rows=num_rows, length=length) as batches:
            for batch in batches:
                is_over = self.progress.phase_step >= num_steps or self.progress.phase_s >= num_s or self.is_done
                if stopped.is_set() or is_over:
                    break
                rate = np.float32(learning_rate_scale(self.config, self.progress))
                began = time.monotonic()
                self.state, measured = self._step(self.state, batch.tokens, batch.kinds, rate)
                measured.loss.block_until_ready()
                metrics.append(measured)
                now = time.monotonic()
                self.progress = msgspec.structs.replace(
                    self.progress,
                    step=self.progress.step + 1,
                    phase_step=self.progress.phase_step + 1,
                    num_tokens=self.progress.num_tokens + num_rows * length,
                    training_s=self.progress.training_s + now - began,
                    phase_s=self.progress.phase_s + now - last_end,
                )
                last_end = now
                measures_held_out = self.progress.step % self.config.held_out_steps == 0
                if measures_held_out or len(metrics) >= 25:
                    speed = len(metrics) * num_rows * length / (time.monotonic() - last_log)
                    self._write_log(metrics, speed, console, measures_held_out=measures_held_out)
                    metrics, last_log = [], time.monotonic()
                if now - last_save >= self.config.checkpoint_s:
                    self.save()
                    last_save = time.monotonic()
                shares = self.progress.phase_step / num_steps, self.progress.phase_s / num_s
                yield max(*shares, decayed_share(self.progress) if is_decay else 0.0)

    def _write_log(self, metrics: list[Metrics], speed: float, console: Console, *, measures_held_out: bool) -> None:
        means = np.mean(np.array([[float(value) for value in step] for step in metrics]), axis=0)
        held_out = self.measure_held_out() if measures_held_out else (None, None)
        line = Log(
            phase=self.progress.phase,
            step=self.progress.step,
            num_tokens=self.progress.num_tokens,
            training_s=round(self.progress.training_s, 1),
            tokens_per_s=round(speed, 1),
            loss=round(float(means[0]), 4),
            hole_loss=round(float(means[1]), 4),
            grad_norm=round(float(means[2]), 4),
            held_out_loss=held_out[0],
            held_out_hole_loss=held_out[1],
        )
        with self._log.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
        text = f"{line.phase} step {line.step} · {line.num_tokens / 1e6:.2f} M tokens · loss {line.loss:.3f} "
        text += f"· hole {line.hole_loss:.3f} · {line.tokens_per_s:.0f} tokens/s"
        if line.held_out_hole_loss is not None:
            text += f" · held out {line.held_out_loss:.3f}, hole {line.held_out_hole_loss:.3f}"
        console.print(text, markup=False, highlight=False)
