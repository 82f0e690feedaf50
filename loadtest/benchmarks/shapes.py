"""The models that benchmarks run: the starter model, and random-weight shapes of 25 M and 110 M parameters."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgspec

from engine.config import EngineConfig
from engine.engine import Engine
from engine.fim import FimTemplate
from engine.loader import STARTER, build_engine, choose_engine_paths
from engine.model.config import ModelConfig
from engine.plan import resolve
from engine.tokenizer import Tokenizer
from engine.types import Output, Request, SamplingParams
from engine.weights.load import load_model, random_model, read_model_config

SHAPE_110M = ModelConfig(
    family="llama",
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2048,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_size=64,
    max_context=2048,
    has_tied_embeddings=True,
)

SHAPE_25M = ModelConfig(
    family="llama",
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_size=64,
    max_context=2048,
    has_tied_embeddings=True,
)

_LINE = "total = total + weight[index] * value[index]\n"


class Bench(NamedTuple):
    """An engine that nothing else steps, and the model in it."""

    name: str
    model: ModelConfig
    engine: Engine


def make_benches(
    on_progress: Callable[[str], None],
    shapes: Mapping[str, ModelConfig | Path] | None = None,
    *,
    widths: tuple[int, ...] | None = None,
    **choices: Any,
) -> list[Bench]:
    """Build an engine per shape. Nothing stops a sequence early: stop tokens are switched off.

    `shapes` names them, each a model directory or a shape that gets random weights; `choices` are fields of the
    engine's configuration. Drafts are off unless chosen, so that a step is one token, and nothing
    is refused for being late. `widths`: tokens per row of the programs, where the engine's own are not what is
    measured.
    """
    tokenizer = Tokenizer.from_directory(STARTER)
    template = msgspec.structs.replace(FimTemplate.detect(tokenizer), stop_ids=())
    config = EngineConfig(**{"num_slots": 16, "drafts": False, "max_slowdown": 0.0} | choices)
    benches = []
    for name, shape in (shapes or {"starter": STARTER, "110m": SHAPE_110M}).items():
        model = read_model_config(shape) if isinstance(shape, Path) else shape
        on_progress(f"{name}: {model.num_parameters / 1e6:.1f} M parameters")
        plan = resolve(config, model)
        if widths is not None:
            family = msgspec.structs.replace(plan.shapes, width_buckets=widths)
            plan = msgspec.structs.replace(plan, shapes=family)
        paths = choose_engine_paths(config, model, plan)
        dtype = jnp.dtype(plan.dtype)
        if isinstance(shape, Path):
            loaded = load_model(shape, dtype=dtype, hold=paths.hold)
        else:
            loaded = random_model(shape, seed=0, dtype=dtype, hold=paths.hold)
        engine = build_engine(loaded, tokenizer, template, config, plan, paths, on_progress=lambda _: None)
        benches.append(Bench(name, model, engine))
    return benches


def real_code() -> str:
    """Return a long Python file that every machine has: the standard library's `argparse`."""
    return Path(argparse.__file__).read_text()


def make_request(engine: Engine, name: str, *, num_tokens: int, max_tokens: int, salt: str) -> Request:
    """Return a request whose prompt has about `num_tokens` tokens; different salts share no prefix."""
    first = f"# {salt}\n"
    tokens_per_line = engine.count_tokens(_LINE * 16) / 16
    lines = int((num_tokens - 4 - engine.count_tokens(first)) / tokens_per_line)
    before = first + _LINE * lines
    return Request(
        request_id=name, before=before, cut=len(before), sampling=SamplingParams(max_tokens=max_tokens), tenant=salt
    )


def ignore(output: Output) -> None:
    """Drop what an engine produces."""
