"""`bench prefill`: how fast prompts are computed, and how near that is to the machine's matrix products."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from engine.model.config import ModelConfig
from loadtest.benchmarks.machine import measure_matmul_rate
from loadtest.benchmarks.shapes import Bench, ignore, make_benches, make_request

_PROMPTS = (128, 512, 1024)
_ROUNDS = 3


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure prompts that share nothing with earlier ones, in interleaved rounds; figures are medians.

    The work of a prompt is two operations per weight of the layers and token, the head once, and the attention that
    a causal mask leaves; its rate is compared with a large product measured in the same run.
    """
    benches = make_benches(on_progress)
    rates: list[float] = []
    seconds: dict[tuple[str, int], list[float]] = {}
    lengths: dict[tuple[str, int], int] = {}
    for round_number in range(1, _ROUNDS + 1):
        rates.append(measure_matmul_rate())
        for bench in benches:
            for num_tokens in _PROMPTS:
                took, length = time_prompt(bench, num_tokens=num_tokens, salt=f"{round_number} {num_tokens}")
                seconds.setdefault((bench.name, num_tokens), []).append(took)
                lengths[bench.name, num_tokens] = length
        on_progress(f"round {round_number} of {_ROUNDS}: a large product runs at {rates[-1] / 1e9:.0f} GFLOP/s")
    rate = max(rates)
    models = {bench.name: bench.model for bench in benches}
    rows: list[dict[str, Any]] = []
    for (name, num_tokens), all_took in seconds.items():
        took_s, length = statistics.median(all_took), lengths[name, num_tokens]
        row = {
            "model": name,
            "prompt_tokens": length,
            "tokens_per_s": length / took_s,
            "prompt_ms": took_s * 1e3,
            "matmul_share": prompt_operations(models[name], length) / took_s / rate,
        }
        rows.append(row)
        on_progress(
            f"{name:>8} prompt of {length:>5}: {row['tokens_per_s']:8.0f} tokens/s, "
            f"{row['matmul_share']:.2f} of the matmul rate"
        )
    headline = {
        "prefill_1k_matmul_share": next(
            row["matmul_share"]
            for row, (name, num_tokens) in zip(rows, seconds, strict=True)
            if (name, num_tokens) == ("110m", 1024)
        ),
        "matmul_gflop_per_s": rate / 1e9,
    }
    return headline, rows


def prompt_operations(model: ModelConfig, length: int) -> float:
    """Return the floating-point operations that a prompt needs."""
    vocabulary = model.vocab_size * model.hidden_size
    layers = model.num_parameters - vocabulary * (1 if model.has_tied_embeddings else 2)
    attention = 4 * (length * length / 2) * model.num_heads * model.head_size * model.num_layers
    return 2 * length * layers + 2 * vocabulary + attention


def time_prompt(bench: Bench, *, num_tokens: int, salt: str) -> tuple[float, int]:
    """Return the seconds from submission to the end of the prompt, and its tokens."""
    engine = bench.engine
    request = make_request(engine, salt, num_tokens=num_tokens, max_tokens=0, salt=salt)
    before = engine.stats().num_prompt_tokens
    began = time.perf_counter()
    engine.submit(request, ignore)
    while engine.has_work():
        engine.step()
    return time.perf_counter() - began, engine.stats().num_prompt_tokens - before
