"""Runs one small model on meshes of virtual devices and on one device; a process of its own, since the number of
devices is fixed when JAX starts. Prints one line of JSON a mesh: tokens, and the largest difference of logit gaps.
`bubbles` and `serve` print what their functions say.
"""

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.config import EngineConfig
from engine.loader import load_replicas
from engine.mesh import choose_mesh
from engine.model.attention import xla_attention
from engine.model.config import ModelConfig
from engine.pipeline import MeshPrograms, MeshWeights
from engine.plan import resolve
from engine.prefix_store import BlockCopy
from engine.programs import Programs
from engine.runner import DeviceRunner, Row
from engine.shapes import Shape
from engine.types import EngineStats, Output, Request, SamplingParams
from engine.weights.load import random_model

NUM_TOKENS = 67
TINY_MODEL = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-llama"


def model_of(num_layers: int, **facts: object) -> ModelConfig:
    return ModelConfig(
        family="llama", vocab_size=70, hidden_size=32, intermediate_size=48, num_layers=num_layers, num_heads=4,
        num_kv_heads=2, head_size=16, max_context=192, **facts,
    )  # fmt: skip


def tokens_of(runner: DeviceRunner) -> tuple[list[int], list[float]]:
    """Whole prompts in chunks, decodes of few rows and many, a draft, a mixed step, blocks saved and loaded."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, NUM_TOKENS, length).tolist() for length in (70, 33, 5, 64)]
    sampling = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=7)
    found: list[int] = []
    gaps: list[float] = []

    def take(results: list) -> None:
        found.extend(choice.token for row in results for choice in row)
        gaps.extend(choice.logit_gap for row in results for choice in row)

    for slot, prompt in enumerate(prompts):
        for start in range(0, len(prompt), 64):
            part = prompt[start : start + 64]
            results = runner.run(Shape(0, 0, 64), [], Row(slot, start, part, SamplingParams(), 0))
        take(results)
    lengths = [len(prompt) for prompt in prompts]
    rows = [Row(slot, lengths[slot], [3 + slot], sampling if slot % 2 else SamplingParams(), 1) for slot in range(4)]
    take(runner.run(Shape(4, 1, 0), rows))
    take(runner.run(Shape(1, 1, 0), [Row(2, lengths[2] + 1, [9], SamplingParams(), 2)]))
    wide = Row(1, lengths[1] + 1, [1, 2, 3, 4], SamplingParams(), 2, 3, np.array([4, 8, 15], np.int32))
    take(runner.run(Shape(4, 8, 0), [wide]))
    runner.copy_blocks([BlockCopy(0, 0, 1), BlockCopy(0, 32, 0)], [])
    runner.copy_blocks([], [BlockCopy(3, 0, 1), BlockCopy(3, 32, 0)])
    again = Row(3, 64, prompts[0][64:], SamplingParams(), 0)
    take(runner.run(Shape(4, 1, 64), [Row(1, lengths[1] + 5, [6], SamplingParams(), 5)], again))
    return found, gaps


def runner_on(model: ModelConfig, num_stages: int, num_tensor: int) -> DeviceRunner:
    config = EngineConfig(
        num_slots=4, prefill_chunk=64, max_context=128, num_stages=num_stages, num_tensor=num_tensor, prefix_store_mb=1
    )
    plan = resolve(config, model, available_bytes=1 << 30)
    if num_stages == num_tensor == 1:
        loaded = random_model(model, seed=3, dtype=jnp.float32)
        programs = Programs(loaded.graphdef, loaded.weights, model, plan, xla_attention, NUM_TOKENS)
    else:
        # NaN wherever no parameter is, so that whatever leaks from padding shows.
        weights = MeshWeights(model, choose_mesh(config, model, jax.devices()), padding=float("nan"))
        random_model(model, seed=3, dtype=jnp.float32, hold=weights.take)
        programs = MeshPrograms(weights, plan, xla_attention, NUM_TOKENS)
    return DeviceRunner(config=model, plan=plan, programs=programs)


class NaNBubbles(MeshPrograms):
    """Programs whose bubbles compute on NaN."""

    def _run_stage(self, model: Any, micro: Shape, x: jax.Array, *rest: Any) -> tuple[jax.Array, Any]:
        kv, batch, index, is_real, *others = rest
        x = jnp.where(is_real, x, jnp.nan)
        return super()._run_stage(model, micro, x, kv, batch, index, self._passes_for_real(is_real), *others)

    def _passes_for_real(self, is_real: jax.Array) -> jax.Array:
        return is_real


class LeakingBubbles(NaNBubbles):
    """The defect that is looked for: bubbles write to slots."""

    def _passes_for_real(self, is_real: jax.Array) -> jax.Array:
        return jnp.ones_like(is_real)


def check_bubbles() -> None:
    """Four stages, four microbatches of a row and 16 tokens of a chunk: print tokens, KV's checksum and its NaNs."""
    model, shape = model_of(4), Shape(4, 1, 64)
    config = EngineConfig(num_slots=5, prefill_chunk=64, max_context=128, num_stages=4, prefix_store_mb=1)
    plan = resolve(config, model, available_bytes=1 << 30)
    prompt = np.random.default_rng(5).integers(0, NUM_TOKENS, 64).tolist()
    rows = [Row(slot, 3 * slot, [slot], SamplingParams(), 1) for slot in range(4)]
    for programs_of in (MeshPrograms, NaNBubbles, LeakingBubbles):
        weights = MeshWeights(model, choose_mesh(config, model, jax.devices()))
        random_model(model, seed=3, dtype=jnp.float32, hold=weights.take)
        programs = programs_of(weights, plan, xla_attention, NUM_TOKENS)
        runner = DeviceRunner(config=model, plan=plan, programs=programs)
        results = runner.run(shape, rows, Row(4, 0, prompt, SamplingParams(), 0))
        kv = np.stack([np.asarray(part) for layer in runner._kv for part in layer])
        line = {"kv": hashlib.sha256(kv).hexdigest(), "num_nan": int(np.isnan(kv).sum())}
        say(line | {"tokens": [choice for row in results for choice in row]})


def texts_of(compile_cache: str, **mesh: int) -> tuple[list[str], EngineStats]:
    """What an engine, or replicas of them, answer to two files in turn, which share one slot and the prefix store."""
    config = EngineConfig(
        num_slots=1, prefill_chunk=16, max_context=128, prefix_store_mb=1, compile_cache=compile_cache, **mesh
    )
    replicas = load_replicas(TINY_MODEL, config)
    files = ["import os\n\n\ndef f(value):\n    return value" * 2, "class A:\n    def g(self, name):\n        x = "]
    texts = []
    for number in range(6):
        done, outputs = threading.Event(), []

        def take(output: Output, done: threading.Event = done, outputs: list[Output] = outputs) -> None:
            outputs.append(output)
            if output.finish is not None:
                done.set()

        request = Request(
            request_id=str(number),
            before=files[number % 2] + "abc"[: number // 2],
            session=str(number % 2),
            sampling=SamplingParams(max_tokens=12),
        )
        replicas.submit(request, take)
        assert done.wait(60)
        texts.append("".join(output.text for output in outputs))
    stats = replicas.stats()
    replicas.close(timeout_s=0)
    return texts, stats


def serve(compile_cache: str) -> None:
    expected, _ = texts_of(compile_cache)
    found, stats = texts_of(compile_cache, num_stages=2, num_tensor=2, num_replicas=2)
    line = {"found": found, "expected": expected, "finished": stats.num_finished, "recompiles": stats.num_recompiles}
    say(line | {"reused": stats.num_reused_tokens})
    os._exit(0)


def main() -> None:
    for num_layers, windows, meshes in json.loads(sys.argv[1]):
        model = model_of(num_layers, windows=tuple(windows))
        expected, expected_gaps = tokens_of(runner_on(model, 1, 1))
        for num_stages, num_tensor in meshes:
            found, gaps = tokens_of(runner_on(model, num_stages, num_tensor))
            difference = float(np.max(np.abs(np.array(gaps) - np.array(expected_gaps))))
            line = {"mesh": [num_layers, num_stages, num_tensor], "difference": difference}
            say(line | {"found": found, "expected": expected})


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    elif sys.argv[1] == "bubbles":
        check_bubbles()
    else:
        main()
