"""`bench dispatch`: what it costs to hand a model's weights to a compiled program, as plain arrays and as a module."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine.loader import STARTER
from engine.weights.load import load_model

_CALLS = 300


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Time a program that touches one weight of the starter model, called both ways in turn."""
    loaded = load_model(STARTER, dtype=jnp.float32)
    leaves, treedef = jax.tree.flatten(loaded.weights)
    one = jax.device_put(jnp.float32(1))

    def touch(model: Any, x: jax.Array) -> jax.Array:
        touched: jax.Array = x + model.embedding[...][0, 0]
        return touched

    def touch_leaves(leaves: list[jax.Array], x: jax.Array) -> jax.Array:
        return touch(nnx.merge(loaded.graphdef, jax.tree.unflatten(treedef, leaves)), x)

    plain = jax.jit(touch_leaves).lower(leaves, one).compile()
    module, model = nnx.jit(touch), nnx.merge(loaded.graphdef, loaded.weights)
    runs = {"plain_arrays": lambda: plain(leaves, one), "nnx_jit": lambda: module(model, one)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for call in range(_CALLS + 3):
        for name, run in runs.items():
            began = time.perf_counter()
            run().block_until_ready()
            if call >= 3:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) * 1e6 for name, values in seconds.items()}
    for name, microseconds in medians.items():
        on_progress(f"{name:>12}: {microseconds:7.1f} us a call with {len(leaves)} leaves")
    rows = [{"way": name, "call_us": value, "leaves": len(leaves)} for name, value in medians.items()]
    return {"nnx_jit_over_plain_arrays": medians["nnx_jit"] / medians["plain_arrays"]}, rows
