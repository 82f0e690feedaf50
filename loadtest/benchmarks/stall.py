"""`bench stall`: how much a long prompt that comes in delays the sequences that run, and they it."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from engine.types import Output
from loadtest.benchmarks.shapes import SHAPE_110M, Bench, make_benches, make_request

_SHAPE = msgspec.structs.replace(SHAPE_110M, max_context=4096)
_RUNNING = 4
_CONTEXT = 512
_PROMPT_TOKENS = 2048
_ADMISSIONS = 5
_QUIET_STEPS = 60


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Let four streams run; admit a prompt alone and beside them, in turn; compare gaps and times."""
    [bench] = make_benches(on_progress, {"110m": _SHAPE})
    quiet, stalled, alone, beside = [], [], [], []
    for number in range(_ADMISSIONS):
        alone.append(_admit(bench, f"alone {number}", []))
        streams = _Streams(bench, f"streams {number}")
        streams.run(_QUIET_STEPS)
        quiet += streams.take_gaps()
        beside.append(_admit(bench, f"beside {number}", streams.gaps))
        stalled += streams.take_gaps()
        streams.stop()
        on_progress(
            f"admission {number + 1} of {_ADMISSIONS}: {alone[-1]:.2f} s alone, {beside[-1]:.2f} s beside others"
        )
    cases = {"no admission": quiet, "during admission": stalled}
    rows = [
        {"case": case, "gap_p50_ms": _percentile(gaps, 50), "gap_p99_ms": _percentile(gaps, 99)}
        for case, gaps in cases.items()
    ]
    return {
        "gap_p99_over_quiet_p50": _percentile(stalled, 99) / _percentile(quiet, 50),
        "admitted_over_alone": float(np.median(beside) / np.median(alone)),
    }, rows


class _Streams:
    """Sequences that run, and the seconds between the tokens of each."""

    def __init__(self, bench: Bench, salt: str) -> None:
        self._bench, self._names = bench, [f"{salt} {i}" for i in range(_RUNNING)]
        self._last: dict[str, float] = {}
        self.gaps: list[float] = []
        for name in self._names:
            request = make_request(bench.engine, name, num_tokens=_CONTEXT, max_tokens=2000, salt=name)
            bench.engine.submit(request, self._take)
        while len(self._last) < _RUNNING:
            bench.engine.step()
        self.gaps.clear()

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._bench.engine.step()

    def take_gaps(self) -> list[float]:
        taken = list(self.gaps)
        self.gaps.clear()
        return taken

    def stop(self) -> None:
        for name in self._names:
            self._bench.engine.cancel(name)
        self._bench.engine.step()

    def _take(self, output: Output) -> None:
        now = time.perf_counter()
        if output.request_id in self._last:
            self.gaps.append(now - self._last[output.request_id])
        self._last[output.request_id] = now


def _admit(bench: Bench, name: str, gaps: list[float]) -> float:
    """Return the seconds until a long prompt has its first token; gaps from before are dropped."""
    outputs: list[Output] = []
    request = make_request(bench.engine, name, num_tokens=_PROMPT_TOKENS, max_tokens=1, salt=name)
    gaps.clear()
    began = time.perf_counter()
    bench.engine.submit(request, outputs.append)
    while not outputs:
        bench.engine.step()
    return time.perf_counter() - began


def _percentile(seconds: list[float], percent: float) -> float:
    return float(np.percentile(seconds, percent)) * 1e3
