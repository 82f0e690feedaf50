"""The models that benchmarks run: the starter model, and a 110 M random-weight shape with the starter's vocabulary."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import msgspec

from engine.config import EngineConfig
from engine.engine import Engine
from engine.fim import FimTemplate
from engine.loader import STARTER, build_engine
from engine.model.config import ModelConfig
from engine.plan import resolve
from engine.tokenizer import Tokenizer
from engine.types import Output, Request, SamplingParams
from engine.weights.load import load_model, random_model

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

_LINE = "total = total + weight[index] * value[index]\n"


class Bench(NamedTuple):
    """An engine that nothing else steps, and the model in it."""

    name: str
    model: ModelConfig
    engine: Engine


def make_benches(on_progress: Callable[[str], None], *, dtype: str = "auto") -> list[Bench]:
    """Build both engines."""
    benches = []
    for name, shape in (("starter", None), ("110m", SHAPE_110M)):
        benches.append(make_bench(name, shape, dtype=dtype))
        on_progress(f"{name}: {benches[-1].model.num_parameters / 1e6:.1f} M parameters")
    return benches


def make_bench(name: str, shape: ModelConfig | None, *, dtype: str = "auto") -> Bench:
    """Build an engine of the starter model (None) or of random weights; stop tokens are off, so that nothing ends."""
    tokenizer = Tokenizer.from_directory(STARTER)
    template = msgspec.structs.replace(FimTemplate.detect(tokenizer), stop_ids=())
    config = EngineConfig(num_slots=16, dtype=dtype)  # type: ignore[arg-type]
    loaded = (
        load_model(STARTER, dtype=jnp.float32)
        if shape is None
        else random_model(shape, seed=0, dtype=jnp.dtype(resolve(config, shape).dtype))
    )
    plan = resolve(config, loaded.config)
    engine = build_engine(loaded, tokenizer, template, config, plan, on_progress=lambda _: None)
    return Bench(name, loaded.config, engine)


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
