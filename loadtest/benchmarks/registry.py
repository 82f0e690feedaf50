"""The benchmarks by name."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from loadtest import report
from loadtest.benchmarks import (
    ablation,
    attention,
    budgets,
    bursts,
    context,
    decode,
    dispatch,
    drafts,
    embedding,
    faults,
    gpu,
    int8,
    keystroke,
    layout,
    partition,
    peers,
    pipeline,
    prefill,
    products,
    rivals,
    similarity,
    soak,
    sparse,
    sparse_quality,
    stall,
    trim,
    warm_cache,
)
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
        Benchmark(
            name="ablation", summary="all features against none, and without each in turn", measure=ablation.measure
        ),
        Benchmark(name="budgets", summary="learned budgets against fixed ones, in turn", measure=budgets.measure),
        Benchmark(
            name="bursts", summary="a production trace at 1, 2, 5 times its pace; overload", measure=bursts.measure
        ),
        Benchmark(name="rivals", summary="typing beside llama.cpp's server (docs/peers.md)", measure=rivals.measure),
        Benchmark(name="attention", summary="attention paths side by side", measure=attention.measure),
        Benchmark(name="context", summary="lines right with text of other files, and without", measure=context.measure),
        Benchmark(name="decode", summary="tokens per second at 1, 4, 16 concurrent requests", measure=decode.measure),
        Benchmark(name="dispatch", summary="weights as plain arrays and as a module", measure=dispatch.measure),
        Benchmark(name="embedding", summary="ways to find places with the same text", measure=embedding.measure),
        Benchmark(name="drafts", summary="tokens that drafts foresee, and what looking costs", measure=drafts.measure),
        Benchmark(name="faults", summary="a server under each fault (make chaos)", measure=faults.measure),
        Benchmark(name="gpu", summary="a 7 B shape in bfloat16 on a GPU", measure=gpu.measure),
        Benchmark(name="int8", summary="int8 weights over float32: speed of steps and prompts", measure=int8.measure),
        Benchmark(name="keystroke", summary="one more character on a long prompt", measure=keystroke.measure),
        Benchmark(name="layout", summary="prompt tokens that a typed character costs", measure=layout.measure),
        Benchmark(
            name="partition", summary="7 B into stages: peak memory, a stage's reading rate", measure=partition.measure
        ),
        Benchmark(name="peers", summary="beside llama.cpp and transformers (docs/peers.md)", measure=peers.measure),
        Benchmark(
            name="pipeline", summary="two processes with a stage each over one process", measure=pipeline.measure
        ),
        Benchmark(name="prefill", summary="prompt tokens per second", measure=prefill.measure),
        Benchmark(name="similarity", summary="drafts from 100,000 places of real code", measure=similarity.measure),
        Benchmark(name="soak", summary="half an hour of typing: memory and latency", measure=soak.measure),
        Benchmark(name="sparse", summary="block-sparse attention over dense, to 16k tokens", measure=sparse.measure),
        Benchmark(
            name="sparse-quality", summary="answers with half of the blocks left out", measure=sparse_quality.measure
        ),
        Benchmark(name="products", summary="products with weights in every form", measure=products.measure),
        Benchmark(name="trim", summary="real blocks that a completion ends with exactly", measure=trim.measure),
        Benchmark(
            name="warm-cache", summary="the first 500 keystrokes after the flow warm-cache", measure=warm_cache.measure
        ),
        Benchmark(name="stall", summary="a long prompt beside running sequences", measure=stall.measure),
    )
}
