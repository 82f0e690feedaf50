"""Logits computed layer by layer from an open checkpoint, for models that are larger than memory.

Holds one layer's weights, or a few thousand rows of the vocabulary, at a time and in float32. Far too slow to serve;
it shows that what was read is the model: two checkpoints of one model give the same logits. Knows no files.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.model.transformer import Layer, Norm, attend_causally, rope_table
from engine.weights.parameters import Parameters, parameter_shapes, read_layer, whole

_VOCABULARY_ROWS = 8192
"""Rows of the vocabulary that are scored at a time."""


def layerwise_logits(open_model: Callable[[], Parameters], tokens: np.ndarray) -> np.ndarray:
    """Return float32 logits `[T, V]` of one sequence of tokens `[T]`; raises what reading raises.

    The model is opened anew for each layer: pages of a mapped file count as memory until it is closed.
    """
    dtype = np.dtype(np.float32)
    with open_model() as parameters:
        config = parameters.config
        rows = [
            parameters.read(("embedding",), (slice(token, token + 1), slice(0, config.hidden_size)), dtype=dtype)
            for token in map(int, tokens)
        ]
    x = jnp.asarray(np.concatenate(rows)[None] * np.float32(config.embedding_scale))
    cos, sin = (jnp.asarray(part)[None, :, None] for part in rope_table(config, len(tokens)))
    graph, _ = nnx.split(nnx.eval_shape(lambda: Layer(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))

    @partial(jax.jit, static_argnums=2)
    def apply_layer(weights: dict[str, Any], x: jax.Array, window: int | None) -> jax.Array:
        attend = partial(attend_causally, windows=(window,))
        applied: jax.Array = nnx.merge(graph, weights)(x, 0, cos, sin, attend)
        return applied

    for layer in range(config.num_layers):
        with open_model() as parameters:
            weights = read_layer(parameters, layer, dtype=dtype)
        x = apply_layer(weights, x, config.window_of(layer))
        x.block_until_ready()
        del weights
    norm_graph, _ = nnx.split(nnx.eval_shape(lambda: Norm(config, config.hidden_size, dtype=jnp.float32)))
    with open_model() as parameters:
        norm = {
            str(path[1]): jnp.asarray(parameters.read(path, whole(shape), dtype=dtype))
            for path, shape in parameter_shapes(config).items()
            if path[0] == "norm"
        }
        return _score(parameters, np.asarray(nnx.merge(norm_graph, norm)(x)[0]))


def _score(parameters: Parameters, hidden: np.ndarray) -> np.ndarray:
    """Return the logits `[T, V]` of hidden states `[T, D]`."""
    config, dtype = parameters.config, np.dtype(np.float32)
    logits = np.empty((len(hidden), config.vocab_size), np.float32)
    for start in range(0, config.vocab_size, _VOCABULARY_ROWS):
        part, every = slice(start, min(start + _VOCABULARY_ROWS, config.vocab_size)), slice(0, config.hidden_size)
        if config.has_tied_embeddings:
            logits[:, part] = hidden @ parameters.read(("embedding",), (part, every), dtype=dtype).T
        else:
            logits[:, part] = hidden @ parameters.read(("head", "kernel"), (every, part), dtype=dtype)
    return logits
