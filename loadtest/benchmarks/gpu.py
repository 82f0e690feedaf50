"""`bench gpu`: a 7 B Qwen2.5-Coder shape in bfloat16 on one GPU, as shares of what the device was measured to do.

Weights are random: speed needs no more. Nothing of this was measured yet; docs/benchmarks.md will have the figures with
device, versions and date once it is. With CLOUDCOMPLETE_PEERS set, transformers decodes the same shape beside it.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from engine.model.config import ModelConfig
from engine.shapes import Shape
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


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure on the GPU that JAX sees; raises RunError without one."""
    if jax.default_backend() != "gpu":
        raise RunError(
            f"this benchmark needs a GPU; JAX computes on {jax.default_backend()}; install the extra cuda12 on a "
            "machine with an NVIDIA GPU, or run `bench decode` and `bench prefill` here"
        )
    return measure_shape(SHAPE_7B, on_progress, concurrent=_CONCURRENT, prompt=_PROMPT)


def measure_shape(
    shape: ModelConfig, on_progress: Callable[[str], None], *, concurrent: tuple[int, ...], prompt: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure one shape on whatever JAX computes on."""
    [bench] = make_benches(on_progress, {"7b": shape}, num_slots=concurrent[-1], dtype="bfloat16", prefix_store_mb=0)
    copy_rate, product_rate = _copy_rate(), _product_rate()
    on_progress(f"the device copies {copy_rate / 1e9:.0f} GB/s and multiplies {product_rate / 1e12:.0f} TFLOP/s")
    rows, headline = [], {}
    for number in concurrent:
        step_s = time_step(bench, context=_CONTEXT, rows=number, salt=f"decode {number}")
        # A copy reads and writes; a step only reads.
        read_bytes = shape.num_parameters * 2 + number * _CONTEXT * shape.kv_bytes_per_token // 2
        share = read_bytes / step_s / copy_rate
        headline[f"decode_b{number}_copy_share"] = share
        rows.append(_row(f"decode b{number}", step_s, number, share))
        on_progress(f"decode of {number:>3}: {step_s * 1e3:.2f} ms, {share:.2f} of the copy rate")
    took = min(time_prompt(bench, num_tokens=prompt, salt=f"prompt {i}") for i in range(_ROUNDS))
    share = prompt_operations(shape, took[1]) / took[0] / product_rate
    headline["prefill_4k_product_share"] = share
    rows.append(_row(f"prefill {took[1]}", *took, share))
    typed = type_characters(bench)
    headline["keystroke_p50_ms"] = typed["first_token_p50_ms"]
    rows.append({"case": "keystroke", "step_ms": typed["first_token_p50_ms"]})
    rows += _width_costs(bench)
    return headline, rows


def _row(case: str, seconds: float, num_tokens: int, share: float) -> dict[str, Any]:
    return {"case": case, "step_ms": seconds * 1e3, "tokens_per_s": num_tokens / seconds, "share": share}


def _width_costs(bench: Bench) -> list[dict[str, Any]]:
    """Return what the programs of one and of all rows cost by width, as measured at start."""
    shapes = [shape for shape in bench.engine.plan.shapes.shapes() if not shape.chunk and shape.rows in (1, 4)]
    return [
        {"case": f"{shape.rows} rows of {shape.width}", "step_ms": bench.engine.costs.seconds(Shape(*shape)) * 1e3}
        for shape in shapes
    ]


def _copy_rate() -> float:
    """Return the bytes per second that the device reads and writes while it copies a large array."""
    values = jnp.ones(1 << 28, jnp.bfloat16)
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
