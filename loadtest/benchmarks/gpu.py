"""`bench gpu`: a 7 B Qwen2.5-Coder shape in bfloat16 on one GPU, as shares of what the device was measured to do.

Weights are random: speed needs no more. Decoding at 1 to 128 sequences is a share of the rate at which the device
copies, a prompt one of the rate of its products, both measured in the same run; then what a keystroke takes, and what
steps of widths 1, 4 and 8 cost. transformers decodes the same shape beside it, first and in a process of its own, where
it can be imported: here, or in the environment that CLOUDCOMPLETE_PEERS names (docs/peers.md). Where it cannot, its
figure is left out and that is said.

On a machine with an NVIDIA GPU and Python 3.11 to 3.13 the package and what it depends on are all that is needed:

    pip install -e '.[cuda12]'     # or cuda13; in an image that has JAX with CUDA: pip install -e .
    cloudcomplete bench gpu --json docs/benchmarks/gpu.json

It takes 16 GB for weights and 7.6 GB for KV. Nothing of it has been measured on a GPU yet; docs/benchmarks.md has the
figures with device, versions and date once it is.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from engine.model.config import ModelConfig
from loadtest.benchmarks.decode import time_step
from loadtest.benchmarks.keystroke import type_characters
from loadtest.benchmarks.prefill import prompt_operations, time_prompt
from loadtest.benchmarks.shapes import Bench, make_benches
from loadtest.errors import RunError

SHAPE_7B = ModelConfig(
    family="qwen2",
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_size=128,
    max_context=8192,
    rope_theta=1_000_000.0,
    has_qkv_bias=True,
)

_CONTEXT = 1024
_CONCURRENT = (1, 8, 32, 128)
_PROMPT = 4096
_ROUNDS = 3
_WIDTHS = (1, 4, 8, 16)
"""The last is for the tails of prompts, as in the engine's own family."""
_NEW_TOKENS = 32
_PEER = Path(__file__).parents[1] / "peers" / "transformers_shape.py"


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure on the GPU that JAX sees; raises RunError without one."""
    # The peer needs memory, too; has an effect only before JAX first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() != "gpu":
        raise RunError(
            f"this benchmark needs a GPU; JAX computes on {jax.default_backend()}; install the extra cuda12 or cuda13 "
            "on a machine with an NVIDIA GPU, or run `bench decode` and `bench prefill` here"
        )
    return measure_shape(SHAPE_7B, on_progress, concurrent=_CONCURRENT, prompt=_PROMPT)


def measure_shape(
    shape: ModelConfig,
    on_progress: Callable[[str], None],
    *,
    concurrent: tuple[int, ...],
    prompt: int,
    **choices: Any,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure one shape on whatever JAX computes on; `choices` are fields of the engine's configuration."""
    theirs = _transformers_step(shape, on_progress)
    settings = {"dtype": "bfloat16", "max_context": max(2 * _CONTEXT, prompt + 64), "prefix_store_mb": 0} | choices
    [bench] = make_benches(on_progress, {"7b": shape}, widths=_WIDTHS, num_slots=concurrent[-1], **settings)
    number_bytes = jnp.dtype(bench.engine.plan.dtype).itemsize
    headline: dict[str, float] = {}
    rows = _width_costs(bench)
    copy_rate, product_rate = _copy_rate(), _product_rate()
    on_progress(f"the device copies {copy_rate / 1e9:.0f} GB/s and multiplies {product_rate / 1e12:.1f} TFLOP/s")
    for number in concurrent:
        step_s = time_step(bench, context=_CONTEXT, rows=number, salt=f"decode {number}")
        # A copy reads and writes; a step only reads.
        read_bytes = number_bytes * (shape.num_parameters + number * _CONTEXT * shape.kv_bytes_per_token // 4)
        share = read_bytes / step_s / copy_rate
        headline[f"decode_b{number}_copy_share"] = share
        rows.append(_row(f"decode b{number}", step_s, number, share))
        on_progress(f"decode of {number:>3}: {step_s * 1e3:.2f} ms, {share:.2f} of the copy rate")
        if number == 1 and theirs is not None:
            headline["decode_b1_over_transformers"] = theirs / step_s
            rows.append({"case": "decode b1, transformers", "step_ms": theirs * 1e3, "tokens_per_s": 1 / theirs})
    took = min(time_prompt(bench, num_tokens=prompt, salt=f"prompt {i}") for i in range(_ROUNDS))
    share = prompt_operations(shape, took[1]) / took[0] / product_rate
    headline["prefill_4k_product_share"] = share
    rows.append(_row(f"prefill {took[1]}", *took, share))
    on_progress(f"prompt of {took[1]}: {took[0] * 1e3:.0f} ms, {share:.2f} of the product rate")
    typed = type_characters(bench)
    headline["keystroke_p50_ms"] = typed["first_token_p50_ms"]
    rows.append({"case": "keystroke", "step_ms": typed["first_token_p50_ms"]})
    return headline, rows


def _row(case: str, seconds: float, num_tokens: int, share: float) -> dict[str, Any]:
    return {"case": case, "step_ms": seconds * 1e3, "tokens_per_s": num_tokens / seconds, "share": share}


def _width_costs(bench: Bench) -> list[dict[str, Any]]:
    """Return what the programs of 1 and of 4 rows cost by width, as measured at start: on rows without context."""
    shapes = [shape for shape in bench.engine.plan.shapes.shapes() if not shape.chunk and shape.rows in (1, 4)]
    return [
        {"case": f"{shape.rows} rows of {shape.width}", "step_ms": bench.engine.costs.seconds(shape) * 1e3}
        for shape in shapes
        if shape.width <= 8
    ]


def _transformers_step(shape: ModelConfig, on_progress: Callable[[str], None]) -> float | None:
    """Return the seconds of transformers' decode step of one sequence; None, and a word why, where it is not there."""
    peers = os.environ.get("CLOUDCOMPLETE_PEERS")
    python = str(Path(peers, "venv/bin/python")) if peers else sys.executable
    if not peers and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        on_progress("transformers is not measured: it cannot be imported here, and CLOUDCOMPLETE_PEERS is not set")
        return None
    config = {
        "model_type": "qwen2",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.max_context,
        "tie_word_embeddings": shape.has_tied_embeddings,
    }
    command = [python, str(_PEER), json.dumps(config), str(_CONTEXT), str(_NEW_TOKENS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError) as error:
        last = ((getattr(error, "stderr", "") or "").strip().splitlines() or [str(error)])[-1]
        on_progress(f"transformers is not measured: {last[-300:]}")
        return None
    seconds = float(found["decode_s"])
    on_progress(f"transformers {found['version']} on {found['device']}: a step of {seconds * 1e3:.2f} ms")
    return seconds


def _copy_rate() -> float:
    """Return the bytes per second that the device reads and writes while it copies a large array."""
    values = jnp.ones(1 << (28 if jax.default_backend() == "gpu" else 22), jnp.bfloat16)
    seconds = _time(jax.jit(lambda x: x + 1), values)
    return 2 * values.nbytes / seconds


def _product_rate() -> float:
    """Return the operations per second of a large bfloat16 product."""
    size = 8192 if jax.default_backend() == "gpu" else 512
    matrix = jnp.ones((size, size), jnp.bfloat16)
    return 2 * size**3 / _time(jax.jit(jnp.matmul), matrix, matrix)


def _time(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    function(*arguments).block_until_ready()
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        function(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
