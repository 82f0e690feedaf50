"""`bench int8`: what a byte a weight brings, engines of both kinds side by side.

What it costs is another question: quality, which `cloudcomplete evaluate` measures against servers of both kinds
(docs/decisions/0006-products.md).
"""

import statistics
from collections.abc import Callable
from typing import Any

from loadtest.benchmarks.decode import time_step
from loadtest.benchmarks.prefill import time_prompt
from loadtest.benchmarks.shapes import SHAPE_25M, SHAPE_110M, make_benches

_CONTEXT = 128
_CONCURRENT = (1, 8, 16)
_PROMPT = 256
_ROUNDS = 5


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Time decode steps and prompts in interleaved rounds; ratios are medians over the rounds, seconds too."""
    shapes = {"25m": SHAPE_25M, "110m": SHAPE_110M}
    pairs = list(zip(make_benches(on_progress, shapes), make_benches(on_progress, shapes, weights="int8"), strict=True))
    seconds: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for round_number in range(_ROUNDS):
        on_progress(f"round {round_number + 1} of {_ROUNDS}")
        for pair in pairs:
            for rows in _CONCURRENT:
                salt = f"{round_number} {rows}"
                took = tuple(time_step(bench, context=_CONTEXT, rows=rows, salt=salt) for bench in pair)
                seconds.setdefault((pair[0].name, f"b{rows}"), []).append(took)
            prompts = tuple(time_prompt(bench, num_tokens=_PROMPT, salt=f"{round_number} prompt")[0] for bench in pair)
            seconds.setdefault((pair[0].name, f"prompt_{_PROMPT}"), []).append(prompts)
    headline: dict[str, float] = {}
    rows_out = []
    for (name, case), rounds in seconds.items():
        float32_s, int8_s = (statistics.median(times) for times in zip(*rounds, strict=True))
        headline[f"int8_{case}_over_f32_{name}"] = ratio = statistics.median(plain / small for plain, small in rounds)
        rows_out.append({"model": name, "case": case, "float32_ms": float32_s * 1e3, "int8_ms": int8_s * 1e3})
        on_progress(f"{name:>5} {case:>10}: float32 {float32_s * 1e3:.2f} ms, int8 {int8_s * 1e3:.2f} ms, {ratio:.2f}")
        if case == "b1":
            headline[f"decode_b1_int8_tokens_per_s_{name}"] = 1 / int8_s
    return headline, rows_out
