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
from engine.model.block_sparse import Report, xla_sparse_attention
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
        num_kv_heads=2, head_size=16, **{"max_context": 192} | facts,
    )  # fmt: skip


def tokens_of(runner: DeviceRunner) -> tuple[list[int], list[float]]:
    """Whole prompts in chunks, decodes of all rows and of one, a draft, a mixed step, blocks saved and loaded."""
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
    take(runner.run(Shape(4, 1, 0), [Row(2, lengths[2] + 1, [9], SamplingParams(), 2)]))
    wide = Row(1, lengths[1] + 1, [1, 2, 3, 4], SamplingParams(), 2, 3, np.array([4, 8, 15], np.int32))
    take(runner.run(Shape(4, 8, 0), [wide]))
    runner.copy_blocks([BlockCopy(0, 0, 1), BlockCopy(0, 32, 0)], [])
    runner.copy_blocks([], [BlockCopy(3, 0, 1), BlockCopy(3, 32, 0)])
    again = Row(3, 64, prompts[0][64:], SamplingParams(), 0)
    take(runner.run(Shape(4, 1, 64), [Row(1, lengths[1] + 5, [6], SamplingParams(), 5)], again))
    return found, gaps


def sparse_prompt(runner: DeviceRunner, *, part: int, is_sparse: bool = True) -> tuple[int, float, Report]:
    """What follows a prompt of 7 blocks, computed in parts: the token, its gap, and what was kept."""
    tokens = np.random.default_rng(8).integers(0, NUM_TOKENS, 405).tolist()
    reports = []
    for start in range(0, len(tokens), part):
        row = Row(1, start, tokens[start : start + part], SamplingParams(), 0, focus=(100, 150) if is_sparse else None)
        [[choice]] = runner.run(Shape(0, 0, 64), [], row)
        reports.append(runner.last_report)
    return choice.token, choice.logit_gap, Report(*map(sum, zip(*reports, strict=True)))


def runner_on(model: ModelConfig, num_stages: int, num_tensor: int, **choices: Any) -> DeviceRunner:
    config = EngineConfig(
        **{"num_slots": 4, "prefill_chunk": 64, "max_context": 128, "prefix_store_mb": 1} | choices,
        num_stages=num_stages,
        num_tensor=num_tensor,
    )
    plan = resolve(config, model, available_bytes=1 << 30)
    sparse = {"sparse_attention": xla_sparse_attention} if "sparse_blocks" in choices else {}
    if num_stages == num_tensor == 1:
        loaded = random_model(model, seed=3, dtype=jnp.float32)
        programs = Programs(loaded.graphdef, loaded.weights, model, plan, xla_attention, NUM_TOKENS, **sparse)
    else:
        # NaN wherever no parameter is, so that whatever leaks from padding shows.
        weights = MeshWeights(model, choose_mesh(config, model, jax.devices()), padding=float("nan"))
        random_model(model, seed=3, dtype=jnp.float32, hold=weights.take)
        programs = MeshPrograms(weights, plan, xla_attention, NUM_TOKENS, **sparse)
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
    """What an engine, or replicas of them, answer to two files in turn, which share one slot and the prefix store;
    and to a long one whose prompt gets block-sparse attention."""
    config = EngineConfig(
        num_slots=1,
        prefill_chunk=16,
        max_context=512,
        prefix_store_mb=1,
        sparse_blocks=4,
        compile_cache=compile_cache,
        **mesh,
    )
    replicas = load_replicas(TINY_MODEL, config)
    files = ["import os\n\n\ndef f(value):\n    return value" * 2, "class A:\n    def g(self, name):\n        x = "]
    requests = [(files[number % 2] + "abc"[: number // 2], str(number % 2), "off") for number in range(6)]
    requests.append(("".join(f"value_{i} = compute({i})\n" for i in range(100)), "long", "on"))
    texts = []
    for number, (before, session, sparse) in enumerate(requests):
        done, outputs = threading.Event(), []

        def take(output: Output, done: threading.Event = done, outputs: list[Output] = outputs) -> None:
            outputs.append(output)
            if output.finish is not None:
                done.set()

        request = Request(
            request_id=str(number),
            before=before,
            session=session,
            sparse=sparse,
            sampling=SamplingParams(max_tokens=12),
        )
        replicas.submit(request, take)
        assert done.wait(60)
        texts.append("".join(output.text for output in outputs))
    stats = replicas.stats()
    replicas.close(timeout_s=0)
    return texts, stats


def serve(compile_cache: str) -> None:
    expected, alone = texts_of(compile_cache)
    found, stats = texts_of(compile_cache, num_stages=2, num_tensor=2, num_replicas=2)
    line = {"found": found, "expected": expected, "finished": stats.num_finished, "recompiles": stats.num_recompiles}
    line["reused"] = stats.num_reused_tokens
    for name, counted in (("kept", stats), ("expected_kept", alone)):
        line[name] = [counted.num_sparse, counted.num_kept_blocks, counted.num_visible_blocks]
    say(line)
    os._exit(0)


def check_sparse() -> None:
    """All blocks kept against dense attention, and a choice of blocks against the same choices on one device."""
    model = model_of(3, max_context=512)
    for num_kept, meshes in ((8, [(2, 1), (1, 2), (2, 2)]), (4, [(2, 2)])):
        choices = {"max_context": 512, "num_slots": 2, "sparse_blocks": num_kept}
        # A mesh of two stages chooses for each of the four parts of a chunk, so one device is given those parts.
        expected = sparse_prompt(
            runner_on(model, 1, 1, **choices), part=64 if num_kept == 8 else 16, is_sparse=num_kept < 8
        )
        for num_stages, num_tensor in meshes:
            found = sparse_prompt(runner_on(model, num_stages, num_tensor, **choices), part=64)
            say({"mesh": [num_stages, num_tensor], "num_kept": num_kept, "found": found, "expected": expected})


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
    match sys.argv[1]:
        case "serve":
            serve(sys.argv[2])
        case "bubbles":
            check_bubbles()
        case "sparse":
            check_sparse()
        case _:
            main()
