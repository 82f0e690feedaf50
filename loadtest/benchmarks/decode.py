"""`bench decode`: how fast running sequences grow, and how near that is to what the memory allows."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from engine.types import Output
from loadtest.benchmarks.machine import measure_read_bandwidth
from loadtest.benchmarks.shapes import Bench, make_benches, make_request

_CONTEXTS = (128, 1024)
_CONCURRENT = (1, 4, 16)
_ROUNDS = 5
_STEPS = 24


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure every case in several interleaved rounds; a case's figures are medians over the rounds.

    A decode step has to read all weights once and each sequence's KV; the share is those bytes per second over what
    the machine was measured to read right before and after. A model that fits into the processor's cache can exceed 1.
    """
    benches = make_benches(on_progress)
    cases = [(bench, context, rows) for bench in benches for context in _CONTEXTS for rows in _CONCURRENT]
    rounds: dict[int, list[tuple[float, float, float]]] = {number: [] for number in range(len(cases))}
    for round_number in range(_ROUNDS):
        on_progress(f"round {round_number + 1} of {_ROUNDS}")
        for number, (bench, context, rows) in enumerate(cases):
            before = measure_read_bandwidth()
            step_s = time_step(bench, context=context, rows=rows, salt=f"{round_number} {number}")
            step_bytes = bench.model.num_parameters * 4 + rows * context * bench.model.kv_bytes_per_token
            bandwidth = (before + measure_read_bandwidth()) / 2
            rounds[number].append((step_s, step_bytes / step_s / bandwidth, bandwidth))
    results = []
    for number, (bench, context, rows) in enumerate(cases):
        step_s, share, bandwidth = map(statistics.median, zip(*rounds[number], strict=True))
        results.append(
            {
                "model": bench.name,
                "context": context,
                "concurrent": rows,
                "tokens_per_s": rows / step_s,
                "step_ms": step_s * 1e3,
                "bandwidth_share": share,
                "memory_read_gb_per_s": bandwidth / 1e9,
            }
        )
        on_progress(
            f"{bench.name:>8} context {context:>5} x {rows:>2}: {rows / step_s:8.0f} tokens/s, "
            f"{share:.2f} of the memory's rate"
        )
    by_case = {(result["model"], result["context"], result["concurrent"]): result for result in results}
    rounds_of = {(bench.name, context, rows): rounds[number] for number, (bench, context, rows) in enumerate(cases)}
    headline = {
        "decode_b1_bandwidth_share": min(by_case["110m", context, 1]["bandwidth_share"] for context in _CONTEXTS),
        "decode_b16_over_b1": statistics.median(
            16 * one[0] / sixteen[0]
            for one, sixteen in zip(rounds_of["starter", 128, 1], rounds_of["starter", 128, 16], strict=True)
        ),
    }
    return headline, results


def time_step(bench: Bench, *, context: int, rows: int, salt: str) -> float:
    """Return the median seconds of a decode step while `rows` sequences run at about `context` tokens."""
    engine, started = bench.engine, set[str]()

    def sink(output: Output) -> None:
        if output.finish is None:
            started.add(output.request_id)

    for i in range(rows):
        name = f"{salt} {i}"
        engine.submit(make_request(engine, name, num_tokens=context, max_tokens=_STEPS * 4 + rows, salt=name), sink)
    while len(started) < rows:
        engine.step()
    seconds = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    for i in range(rows):
        engine.cancel(f"{salt} {i}")
    engine.step()
    return statistics.median(seconds)
