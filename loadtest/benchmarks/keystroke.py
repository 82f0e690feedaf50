"""`bench keystroke`: what one more typed character costs on a long prompt, beside the same prompt computed anew."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from engine.types import Output, Request, SamplingParams, Usage
from loadtest.benchmarks.shapes import Bench, make_benches, real_code
from server.config import ServerConfig
from server.prompt import cut_window

_PROMPT_TOKENS = 1500
_KEYSTROKES = 120
_COLD_EVERY = 6
"""One keystroke in so many is also computed anew, right after, on the same machine in the same state."""


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Type real code into the middle of a file, one character at a time, newlines too; time to the first token."""
    rows: list[dict[str, Any]] = []
    for bench in make_benches(on_progress):
        row = type_characters(bench)
        rows.append({"model": bench.name, **row})
        on_progress(
            f"{bench.name:>8}: {row['tokens_computed_p50']:.0f} tokens and {row['first_token_p50_ms']:.1f} ms, "
            f"anew {row['cold_p50_ms']:.0f} ms"
        )
    return {name: max(row[name] for row in rows) for name in ("tokens_computed_p50", "time_over_cold_p50")}, rows


def type_characters(bench: Bench) -> dict[str, float]:
    """Return the tokens that a keystroke computes and its milliseconds; and, where computed anew too, the ratio."""
    text = real_code()
    cursor, room = text.index("\n", len(text) // 2) + 1, _window_chars(bench, text)
    before, after = text[cursor - 3 * room // 4 : cursor], text[cursor + _KEYSTROKES : cursor + room // 4]
    tokens, seconds, ratios, cold = [], [], [], []
    _ask(bench, "opening", before, after, is_fresh=False)
    for number in range(1, _KEYSTROKES):
        typed = before + text[cursor : cursor + number]
        usage, warm_s = _ask(bench, f"warm {number}", typed, after, is_fresh=False)
        tokens.append(usage.num_prompt_tokens - usage.num_reused_tokens)
        seconds.append(warm_s)
        if number % _COLD_EVERY == 0:
            _, cold_s = _ask(bench, f"cold {number}", typed, after, is_fresh=True)
            ratios.append(warm_s / cold_s)
            cold.append(cold_s)
    return {
        "keystrokes": len(tokens),
        "tokens_computed_p50": statistics.median(tokens),
        "tokens_computed_mean": statistics.fmean(tokens),
        "first_token_p50_ms": statistics.median(seconds) * 1e3,
        "cold_p50_ms": statistics.median(cold) * 1e3,
        "time_over_cold_p50": statistics.median(ratios),
    }


def _window_chars(bench: Bench, text: str) -> int:
    """Return how much of this text has about as many tokens as the prompt shall have."""
    return int(_PROMPT_TOKENS * len(text) / bench.engine.count_tokens(text))


def _ask(bench: Bench, name: str, before: str, after: str, *, is_fresh: bool) -> tuple[Usage, float]:
    outputs: list[Output] = []
    window = cut_window(before, after, ServerConfig())
    request = Request(
        request_id=name,
        before=window.before,
        after=window.after,
        cut=window.cut,
        sampling=SamplingParams(max_tokens=1),
        session="" if is_fresh else "typing",
        tenant="anew" if is_fresh else "",
        is_fresh=is_fresh,
    )
    began = time.perf_counter()
    bench.engine.submit(request, outputs.append)
    while bench.engine.has_work():
        bench.engine.step()
    seconds = time.perf_counter() - began
    finish = outputs[-1].finish
    assert finish is not None
    return finish.usage, seconds
