"""The benchmarks by name."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from loadtest import report
from loadtest.benchmarks import attention, decode, dispatch, embedding, layout, prefill, similarity
from loadtest.benchmarks.machine import describe_devices


class Measure(Protocol):
    """Runs a benchmark: headline numbers, and the rows they come from."""

    def __call__(self, on_progress: Callable[[str], None], /) -> tuple[dict[str, float], list[dict[str, Any]]]: ...


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark: what it is called, what it shows, how it is run."""

    name: str
    summary: str
    measure: Measure

    def run(self, *, on_progress: Callable[[str], None]) -> report.Result:
        """Measure, and return the result."""
        headline, rows = self.measure(on_progress)
        return report.assemble(headline, rows, command=f"cloudcomplete bench {self.name}", devices=describe_devices())


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(name="attention", summary="attention paths side by side", measure=attention.measure),
        Benchmark(name="decode", summary="tokens per second at 1, 4, 16 concurrent requests", measure=decode.measure),
        Benchmark(name="dispatch", summary="weights as plain arrays and as a module", measure=dispatch.measure),
        Benchmark(name="embedding", summary="ways to find places with the same text", measure=embedding.measure),
        Benchmark(name="layout", summary="prompt tokens that a typed character costs", measure=layout.measure),
        Benchmark(name="prefill", summary="prompt tokens per second", measure=prefill.measure),
        Benchmark(name="similarity", summary="drafts from 100,000 places of real code", measure=similarity.measure),
    )
}
