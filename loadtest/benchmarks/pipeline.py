"""`bench pipeline`: two processes pinned to a core each, a stage each, against one process on one core; 110 M shape.

Both run 16 tokens a microbatch. One process runs them one after the other, over the whole model; two processes let them
circulate, 16 in a step. The bound of decode is what memory gives while both cores read at once: of each microbatch a
stage reads its layers' weights and the KV, and once a step its share of the vocabulary. Busy is the processor time that
a process used while steps ran, idle the rest of the wall time: what waits for the other stage sleeps, so it is
measured, not counted from the schedule.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROWS = 16
"""Tokens of a microbatch."""
MICROBATCHES = 16
"""Of a step: 16 of them pass two stages in 17 ticks."""
_STEPS = 7
_POSITION = 64
"""Of the rows that decode: so much KV is read for each."""
_LIMIT_S = 280
"""Seconds that one process may take."""


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run one process, then two; return the headline and a row a process."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError(f"bench pipeline needs two cores, got {len(cores)}; run it on a larger machine")
    on_progress("one process on one core")
    [one] = _run(cores[:1])
    on_progress("two processes on one core each")
    two = _run(cores[:2])
    bandwidth = sum(row["read_bytes_per_s"] for row in two)
    # The ticks beyond the microbatches, the ring's ends, are no part of the bound.
    bound = ROWS * MICROBATCHES / max(row["step_bytes"] / row["read_bytes_per_s"] for row in two)
    slowest = max(two, key=lambda row: row["prefill_s"])
    decode = max(row["decode_s"] for row in two)
    headline = {
        "two_process_prefill_speedup": one["prefill_s"] / slowest["prefill_s"],
        "two_process_prefill_over_whole_chunks": one["whole_prefill_s"] / slowest["prefill_s"],
        "two_process_decode_share": ROWS * MICROBATCHES / decode / bound,
        "two_process_decode_speedup": one["decode_s"] / decode,
        "two_process_read_gb_per_s": bandwidth / 1e9,
    }
    for name in ("prefill", "decode"):
        for row in two:
            on_progress(
                f"stage {row['stage']}, {name}: busy {row[f'{name}_busy_share']:.0%}, "
                f"idle {1 - row[f'{name}_busy_share']:.0%} of {row[f'{name}_s'] * 1e3:.0f} ms a step"
            )
    return headline, [one, *two]


def _run(cores: list[int]) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    children = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(stage), str(len(cores)), coordinator, str(core)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for stage, core in enumerate(cores)
    ]
    try:
        deadline = time.monotonic() + _LIMIT_S
        while any(child.poll() is None for child in children):  # one that waits for one that failed never ends
            if time.monotonic() > deadline or any(child.returncode for child in children):
                raise RuntimeError("a process of the benchmark failed or did not end; see its error above")
            time.sleep(0.1)
        if any(child.returncode for child in children):
            raise RuntimeError("a process of the benchmark failed; see its error above")
        return [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def work(stage: int, num_stages: int, coordinator: str) -> dict[str, Any]:
    """Measure as one process of the mesh."""
    import jax
    import jax.numpy as jnp
    import msgspec
    import numpy as np

    if num_stages > 1:
        jax.distributed.initialize(coordinator, num_stages, stage)

    from engine import native
    from engine.config import EngineConfig
    from engine.loader import compile_cache_directory
    from engine.mesh import choose_mesh
    from engine.model.attention import native_attention
    from engine.model.matrix import hold
    from engine.pipeline import MeshPrograms, MeshWeights
    from engine.plan import resolve
    from engine.programs import Programs
    from engine.runner import DeviceRunner, Row
    from engine.shapes import Shape, ShapeFamily
    from engine.stages import plan_stages
    from engine.types import SamplingParams
    from engine.weights.load import random_model
    from engine.weights.parameters import ParameterPath
    from loadtest.benchmarks.shapes import SHAPE_110M

    native.register(native.build(compile_cache_directory(EngineConfig()) / "native"))

    def keep(path: ParameterPath, parameter: jax.Array) -> Any:
        is_matrix = path[-1] in ("kernel", "embedding")
        return hold(parameter, "panels", is_table=path[-1] == "embedding") if is_matrix else parameter

    num_rows, chunk = ROWS * MICROBATCHES, ROWS * MICROBATCHES
    config = EngineConfig(
        num_slots=num_rows if num_stages > 1 else ROWS, max_context=128, prefill_chunk=chunk, num_stages=num_stages,
        prefix_store_mb=0,
    )  # fmt: skip
    plan = msgspec.structs.replace(
        resolve(config, SHAPE_110M, available_bytes=1 << 40),
        shapes=ShapeFamily(row_buckets=(config.num_slots,), width_buckets=(1,), chunk_buckets=(ROWS, chunk)),
    )
    greedy = SamplingParams()
    if num_stages == 1:
        loaded = random_model(SHAPE_110M, seed=0, dtype=jnp.float32, hold=keep)
        programs = Programs(loaded.graphdef, loaded.weights, SHAPE_110M, plan, native_attention, SHAPE_110M.vocab_size)
        size = ROWS
    else:
        weights = MeshWeights(SHAPE_110M, choose_mesh(config, SHAPE_110M, jax.devices()), hold=keep)
        random_model(SHAPE_110M, seed=0, dtype=jnp.float32, hold=weights.take)
        programs = MeshPrograms(weights, plan, native_attention, SHAPE_110M.vocab_size)
        size = chunk
    runner = DeviceRunner(config=SHAPE_110M, plan=plan, programs=programs)
    tokens = np.random.default_rng(0).integers(0, SHAPE_110M.vocab_size, chunk).tolist()

    def prefill(size: int) -> None:
        for start in range(0, chunk, size):
            runner.run(Shape(0, 0, size), [], Row(0, start, tokens[start : start + size], greedy, 0))

    def decode() -> None:
        rows = [Row(slot, _POSITION, [slot], greedy, 1) for slot in range(config.num_slots)]
        for _ in range(num_rows // len(rows)):
            runner.run(Shape(len(rows), 1, 0), rows)

    def timed(step: Callable[[], None]) -> tuple[float, float]:
        step()
        seconds, busy = [], []
        for _ in range(_STEPS):
            began, used = time.perf_counter(), time.process_time()
            step()
            seconds.append(time.perf_counter() - began)
            busy.append((time.process_time() - used) / seconds[-1])
        return statistics.median(seconds), min(1.0, statistics.median(busy))

    part = plan_stages(SHAPE_110M, num_stages)[stage]
    table = part.num_tokens * SHAPE_110M.hidden_size
    kv_bytes = ROWS * _POSITION * SHAPE_110M.kv_bytes_per_token * part.num_layers // SHAPE_110M.num_layers
    prefill_s, prefill_busy = timed(lambda: prefill(size))
    decode_s, decode_busy = timed(decode)
    # What memory gives while the other core reads too: both processes measure at the same moment.
    values = np.ones(1 << 26, np.float32)
    decode()
    reads = []
    for _ in range(9):
        began = time.perf_counter()
        np.add.reduce(values)
        reads.append(time.perf_counter() - began)
    row = {
        "processes": num_stages,
        "stage": stage,
        "prefill_s": prefill_s,
        "prefill_busy_share": prefill_busy,
        "decode_s": decode_s,
        "decode_busy_share": decode_busy,
        "step_bytes": MICROBATCHES * (4 * (part.num_parameters - table) + kv_bytes) + 4 * table,
        "read_bytes_per_s": values.nbytes / statistics.median(reads),
    }
    if num_stages == 1:
        row["whole_prefill_s"], _ = timed(lambda: prefill(chunk))
    else:
        decode()
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("stage", "num_stages", "coordinator", "core"):
        parser.add_argument(name)
    parsed = parser.parse_args()
    os.sched_setaffinity(0, {int(parsed.core)})
    sys.stdout.write(json.dumps(work(int(parsed.stage), int(parsed.num_stages), parsed.coordinator)) + "\n")
    sys.stdout.flush()
    if int(parsed.num_stages) > 1:
        import jax

        jax.distributed.shutdown()  # waits for the other process: it could not go on without this one
    os._exit(0)
