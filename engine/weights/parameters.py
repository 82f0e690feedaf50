"""What a reader of weights offers, whatever files they lie in: every parameter of a model by its path, or part of it.

Knows no files: `load.py` opens model directories in Hugging Face's layout, `partition.py` partitioned checkpoints.
"""

import functools
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.model.config import ModelConfig
from engine.model.transformer import Transformer

ParameterPath = tuple[str | int, ...]
Index = tuple[slice, ...]
"""Which part of an array is meant: one slice per axis, without steps."""


class Parameters(AbstractContextManager["Parameters"], Protocol):
    """An open checkpoint."""

    @property
    def config(self) -> ModelConfig:
        """The model's facts."""

    def dtype_of(self, path: ParameterPath) -> np.dtype[Any]:
        """Return the type in which a parameter is kept."""

    def read(self, path: ParameterPath, index: Index, *, dtype: np.dtype[Any]) -> np.ndarray:
        """Return part of a parameter, matrices as `[in, out]`; raises WeightsError."""


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: ModelConfig) -> dict[ParameterPath, tuple[int, ...]]:
    """Return the shape of every parameter of a model, in the order in which it is loaded."""
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=jnp.float32))
    state = nnx.to_flat_state(nnx.state(abstract))
    return {cast(ParameterPath, path): tuple(leaf.shape) for path, leaf in state}


def whole(shape: tuple[int, ...]) -> Index:
    """Return the index of all of an array."""
    return tuple(slice(0, size) for size in shape)


def read_layer(parameters: Parameters, layer: int, *, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return one layer's weights, nested as `Layer` is, on the default device."""
    weights: dict[str, Any] = {}
    for path, shape in parameter_shapes(parameters.config).items():
        if path[:2] == ("layers", layer):
            node = weights
            for parent in path[2:-1]:
                node = node.setdefault(str(parent), {})
            node[str(path[-1])] = jax.device_put(parameters.read(path, whole(shape), dtype=dtype))
    return weights
