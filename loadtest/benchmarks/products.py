"""`bench products`: products with weights in every form side by side, as many as a model's layers have."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.config import EngineConfig
from engine.loader import STARTER, choose_engine_paths
from engine.model.config import ModelConfig
from engine.model.matrix import Form, Matrix, hold, multiply, score
from engine.plan import resolve
from engine.weights.load import read_model_config
from loadtest.benchmarks.shapes import SHAPE_110M

_FORMS: tuple[Form, ...] = ("plain", "panels", "int8", "int8 panels")
_ROWS = (1, 4, 8, 16, 64, 256)
_LAYERS = 4
_ROUNDS = 15


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Time all forms in turn; ratios to the plain form, which is XLA's product, are medians over the rounds."""
    headline: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name, model in (("starter", read_model_config(STARTER)), ("110m", SHAPE_110M)):
        if choose_engine_paths(EngineConfig(), model, resolve(EngineConfig(), model)).form != "panels":
            on_progress("the native products are not available here: nothing to compare")
            return {}, []
        weights = {form: _weights(model, form) for form in _FORMS}
        for num_rows in _ROWS:
            runs = [_prepare(weights[form], num_rows, model.hidden_size) for form in _FORMS]
            rounds = [[run() for run in runs] for _ in range(_ROUNDS)]
            row: dict[str, Any] = {"model": name, "rows": num_rows, "layers": _LAYERS}
            for i, form in enumerate(_FORMS):
                row[f"{form.replace(' ', '_')}_ms"] = statistics.median(times[i] for times in rounds) * 1e3
            rows.append(row)
            for i, form in ((1, "panels"), (3, "int8_panels")):
                ratio = statistics.median(times[0] / times[i] for times in rounds)
                headline[f"{form}_over_xla_b{num_rows}_{name}"] = ratio
            on_progress(
                f"{name:>7} x {num_rows:>3}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items() if "_ms" in k)
            )
    return headline, rows


def _weights(model: ModelConfig, form: Form) -> list[Matrix]:
    """Return the matrices of a few layers and the table of embeddings, random, in a form."""
    rng = np.random.default_rng(0)
    inner, outer = model.intermediate_size, model.hidden_size
    qkv = (model.num_heads + 2 * model.num_kv_heads) * model.head_size
    sizes = ((outer, qkv), (model.num_heads * model.head_size, outer), (outer, 2 * inner), (inner, outer))
    kernels = [rng.standard_normal(size, np.float32) for _ in range(_LAYERS) for size in sizes]
    table = rng.standard_normal((model.vocab_size, outer), np.float32)
    return [*(hold(jnp.asarray(kernel), form) for kernel in kernels), hold(jnp.asarray(table), form, is_table=True)]


def _prepare(weights: list[Matrix], num_rows: int, hidden_size: int) -> Callable[[], float]:
    """Compile the layers' products one after the other; return a function that runs them and returns its seconds."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((num_rows, hidden_size)), jnp.float32)

    def chain(x: jax.Array, weights: list[Matrix]) -> jax.Array:
        for i in range(0, len(weights) - 1, 4):
            qkv, output, gate_up, down = weights[i : i + 4]
            x = x + multiply(multiply(x, qkv)[:, :hidden_size], output) * 1e-3
            gate, up = jnp.split(multiply(x, gate_up), 2, axis=-1)
            x = x + multiply(gate * up, down) * 1e-6
        return score(x, weights[-1])

    program = jax.jit(chain).lower(x, weights).compile()

    def run() -> float:
        began = time.perf_counter()
        program(x, weights).block_until_ready()
        return time.perf_counter() - began

    run()
    return run
