"""Model directories in Hugging Face's layout, or partitioned checkpoints (`partition.py`), to weights on the device.

Reads `config.json` and `*.safetensors`, with or without an index: of each tensor only the slices that this host's
devices hold, in parts of a few megabytes that are cast one by one. The host never holds more than one parameter beside
what the devices hold. Never unpickles: `.bin` and `.pth` files run code when they are opened. Does not know which
families exist (`model/families/`), how a mesh divides the weights (`Placement`), nor which form of a matrix is the
fastest (`Hold`).
"""

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from jax.typing import DTypeLike

from engine.errors import ModelConfigError, WeightsError
from engine.model.config import ModelConfig
from engine.model.families import family_of
from engine.model.matrix import Matrix
from engine.model.transformer import Transformer
from engine.weights.parameters import Index, ParameterPath, Parameters, parameter_shapes
from engine.weights.partition import Partition, is_partition, read_manifest

_PLAIN_DTYPES: dict[str, DTypeLike] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""Types of tensors that are read, the widest first."""

_PART_BYTES = 1 << 23
"""Of a tensor, as it lies in its file, this much is read at a time."""

Placement = Callable[[ParameterPath, tuple[int, ...]], jax.sharding.Sharding]
"""(path, shape) -> how a parameter is divided over devices."""

Hold = Callable[[ParameterPath, jax.Array], Matrix]
"""(path, parameter) -> the form in which it is kept (`model/matrix.py`)."""


def place_on_one_device(path: ParameterPath, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Place a parameter as a whole on the default device."""
    del path, shape
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def hold_plain(path: ParameterPath, parameter: jax.Array) -> Matrix:
    """Keep a parameter as it is."""
    del path
    return parameter


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run: `nnx.merge(graphdef, weights)` inside a compiled program gives the `Transformer`."""

    config: ModelConfig
    graphdef: nnx.GraphDef[Transformer]
    weights: dict[str, Any]
    """Plain arrays, or forms of `model/matrix.py`, nested as the module is: `weights["layers"][0]["qkv"]["kernel"]`."""


def read_model_config(directory: Path) -> ModelConfig:
    """Read a model directory's `config.json`; raises ModelConfigError."""
    hf = _read_config_json(directory)
    return family_of(hf).read_config(hf)


def weights_bytes(directory: Path) -> int:
    """Return the size of a model directory's weights on disk; raises PartitionError."""
    if is_partition(directory):
        return read_manifest(directory).num_bytes
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def load_model(
    directory: Path, *, dtype: DTypeLike, place: Placement = place_on_one_device, hold: Hold = hold_plain
) -> LoadedModel:
    """Load a model directory or a partitioned checkpoint, cast to `dtype`; raises ModelConfigError or WeightsError."""
    with open_parameters(directory) as parameters:

        def make(path: ParameterPath, shape: tuple[int, ...]) -> jax.Array:
            read = partial(parameters.read, path, dtype=np.dtype(dtype))
            return jax.make_array_from_callback(shape, place(path, shape), read)

        return _filled(parameters.config, np.dtype(dtype), make, hold)


def open_parameters(directory: Path, *, stages: Collection[int] | None = None) -> Parameters:
    """Open a model directory or a partitioned checkpoint, of which only `stages` have to be here (None: all).

    Raises ModelConfigError, WeightsError or PartitionError.
    """
    config = read_model_config(directory)
    return Partition(directory, config, stages=stages) if is_partition(directory) else _Files(directory, config)


class _Files(contextlib.AbstractContextManager["_Files"]):
    """A model directory's `Parameters`."""

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self.config = config
        self._names = family_of(_read_config_json(directory)).tensor_names(config)
        self._shapes = parameter_shapes(config)
        self._checkpoint = _Checkpoint(directory)
        try:
            self._checkpoint.check_names(name for parts in self._names.values() for name in parts)
        except BaseException:
            self._checkpoint.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._checkpoint.close()

    def dtype_of(self, path: ParameterPath) -> np.dtype[Any]:
        """Return the type of the files, the widest one of a packed parameter's tensors."""
        dtypes = {view.get_dtype() for view, _ in self._open_parts(path)}
        return np.dtype(_PLAIN_DTYPES[next(name for name in _PLAIN_DTYPES if name in dtypes)])

    def read(self, path: ParameterPath, index: Index, *, dtype: np.dtype[Any]) -> np.ndarray:
        """Return part of a parameter."""
        parts, shape = self._open_parts(path), self._shapes[path]
        return _read_packed(parts, index, shape=shape, dtype=dtype, is_kernel=path[-1] == "kernel")

    def _open_parts(self, path: ParameterPath) -> list[tuple[Any, int]]:
        shape = self._shapes[path]
        sizes = _packed_sizes(self.config, path) or shape[-1:]
        return self._checkpoint.open_parts(self._names[path], sizes, shape, path[-1] == "kernel")


def random_model(
    config: ModelConfig,
    *,
    seed: int,
    dtype: DTypeLike,
    place: Placement = place_on_one_device,
    hold: Hold = hold_plain,
) -> LoadedModel:
    """Return a model of this shape with random weights: as fast as a trained one, and as good as none."""
    rng = np.random.default_rng(seed)

    def draw(path: ParameterPath, shape: tuple[int, ...]) -> jax.Array:
        if path[-1] == "scale":
            values = np.ones(shape, dtype)
        elif path[-1] == "bias":
            values = np.zeros(shape, dtype)
        else:
            fan_in = shape[-1] if path[-1] == "embedding" else shape[0]
            values = rng.standard_normal(shape, np.float32)
            values *= fan_in**-0.5
        placed: jax.Array = jax.device_put(values.astype(dtype, copy=False), place(path, shape))
        return placed

    return _filled(config, np.dtype(dtype), draw, hold)


def _packed_sizes(config: ModelConfig, path: ParameterPath) -> tuple[int, ...] | None:
    """Return how the last axis of a packed parameter is divided, or None for one that is a single tensor."""
    if "qkv" in path:
        return config.num_heads * config.head_size, *2 * (config.num_kv_heads * config.head_size,)
    if "gate_up" in path:
        return 2 * (config.intermediate_size,)
    return None


def _filled(
    config: ModelConfig,
    dtype: np.dtype[Any],
    make: Callable[[ParameterPath, tuple[int, ...]], jax.Array],
    hold: Hold,
) -> LoadedModel:
    """Return a model whose every parameter is what `make(path, shape)` returns, in the form that `hold` gives it.

    One by one: a parameter in its first form is gone before the next is made.
    """
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype)))
    graphdef, state = nnx.split(abstract)
    weights: dict[Any, Any] = {}
    for key, leaf in nnx.to_flat_state(state):
        path = cast(ParameterPath, key)
        *parents, name = path
        node = weights
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jax.block_until_ready(hold(path, make(path, leaf.shape)))
    return LoadedModel(config=config, graphdef=graphdef, weights=weights)


def _read_config_json(directory: Path) -> dict[str, Any]:
    expected = "expected a Hugging Face model directory with config.json, *.safetensors and tokenizer.json"
    if not directory.exists():
        raise ModelConfigError(f"model directory {directory} does not exist; {expected}; check the path")
    if not directory.is_dir():
        raise ModelConfigError(f"{directory} is a file; {expected}; name the directory that holds it")
    path = directory / "config.json"
    if not path.is_file():
        raise ModelConfigError(f"no config.json in {directory}; {expected}; check the path or download the model again")
    return _read_json_object(path, ModelConfigError)


def _read_json_object(path: Path, error_type: type[ModelConfigError | WeightsError]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path} is not JSON ({error}); expected a JSON object; download or copy it again") from None
    if not isinstance(value, dict):
        raise error_type(f"{path} holds a {type(value).__name__}; expected a JSON object; download or copy it again")
    return value


class _Checkpoint:
    """The tensors of a model directory, over one file or several."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file_of = _tensor_files(directory)
        self._exit = contextlib.ExitStack()
        self._open = {
            path: self._exit.enter_context(safetensors.safe_open(path, framework="numpy"))
            for path in sorted(set(self._file_of.values()))
        }

    def close(self) -> None:
        """Close the files."""
        self._exit.close()

    def check_names(self, used: Iterable[str]) -> None:
        """Refuse a checkpoint with other tensors than the config promises: it would run, and answer wrongly."""
        used = set(used)
        for name in used - self._file_of.keys():
            raise WeightsError(
                f"{self._directory} has no tensor {name}; expected it by config.json, got {len(self._file_of)} others; "
                "the download is incomplete or config.json belongs to another model"
            )
        for name in self._file_of.keys() - used:
            if name != "lm_head.weight" and not name.endswith(".rotary_emb.inv_freq"):
                raise WeightsError(
                    f"{self._file_of[name]} has a tensor {name} unknown to config.json; expected {len(used)} tensors, "
                    f"got {len(self._file_of)}; config.json belongs to another model"
                )

    def open_parts(
        self, names: tuple[str, ...], sizes: tuple[int, ...], shape: tuple[int, ...], is_kernel: bool
    ) -> list[tuple[Any, int]]:
        """Return views of the named tensors and their sizes: side by side along the last axis they make up `shape`."""
        parts = []
        for name, size in zip(names, sizes, strict=True):
            part_shape = (*shape[:-1], size)
            parts.append((self._open_checked(name, part_shape[::-1] if is_kernel else part_shape), size))
        return parts

    def _open_checked(self, name: str, expected_shape: tuple[int, ...]) -> Any:
        path = self._file_of[name]
        view = self._open[path].get_slice(name)
        if (shape := tuple(view.get_shape())) != expected_shape:
            raise WeightsError(
                f"tensor {name} in {path} has the shape {list(shape)}; expected {list(expected_shape)} by config.json; "
                "the weights and config.json belong to different models"
            )
        if (dtype := view.get_dtype()) not in _PLAIN_DTYPES:
            raise WeightsError(
                f"tensor {name} in {path} is {dtype}; expected one of {', '.join(_PLAIN_DTYPES)}; "
                "quantised checkpoints are not read: choose the model's unquantised one"
            )
        return view


def _read_packed(
    parts: list[tuple[Any, int]], index: Index, *, shape: tuple[int, ...], dtype: np.dtype[Any], is_kernel: bool
) -> np.ndarray:
    """Return `index` of tensors side by side along the last axis; kernels are `[out, in]` in the files, and are turned.

    Parts are read and cast along the files' first axis, where their rows lie one after the other.
    """
    bounds = [slice(*axis.indices(size)[:2]) for axis, size in zip(index, shape, strict=True)]
    packed = np.empty([axis.stop - axis.start for axis in bounds], dtype)
    target, start = (packed.T if is_kernel else packed), 0
    for view, size in parts:
        last = slice(max(bounds[-1].start - start, 0), min(bounds[-1].stop - start, size))
        offset = start - bounds[-1].start
        start += size
        if last.start >= last.stop:
            continue
        wanted = (*bounds[:-1], last)
        begins = (*(axis.start for axis in bounds[:-1]), -offset)
        wanted, begins = (wanted[::-1], begins[::-1]) if is_kernel else (wanted, begins)
        row_bytes = max(1, math.prod(axis.stop - axis.start for axis in wanted[1:]) * 4)
        step = max(1, _PART_BYTES // row_bytes)
        for row in range(wanted[0].start, wanted[0].stop, step):
            rows = (slice(row, min(row + step, wanted[0].stop)), *wanted[1:])
            target[tuple(slice(a.start - b, a.stop - b) for a, b in zip(rows, begins, strict=True))] = view[rows]
    return packed


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Return which file holds each tensor, every file checked to be whole."""
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file():
        return dict.fromkeys(_tensor_names_in(whole), whole)
    if not index.is_file():
        pickled = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in directory.glob(pattern))
        raise WeightsError(
            f"no weights in {directory}; expected model.safetensors or model.safetensors.index.json, "
            f"got {', '.join(pickled) or 'neither'}; .bin and .pth files are never opened, because that runs code: "
            "convert the model to safetensors (transformers' save_pretrained writes it)"
        )
    weight_map = _read_json_object(index, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise WeightsError(f"{index} has no weight_map of tensor names to file names; expected one; download it again")
    names_in: dict[str, set[str]] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (directory / shard).is_file():
            raise WeightsError(
                f"{index} names the file {shard}; expected it beside the index, got no such file; "
                "download the missing file"
            )
        names_in[shard] = _tensor_names_in(directory / shard)
    for name, shard in weight_map.items():
        if name not in names_in[shard]:
            raise WeightsError(
                f"{index} places the tensor {name} in {shard}; expected it there, got {len(names_in[shard])} others; "
                "the files belong to different downloads: download them again"
            )
    return {name: directory / shard for name, shard in weight_map.items()}


def _tensor_names_in(path: Path) -> set[str]:
    """Return the names in a safetensors file, after comparing what its header promises with the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or size < 8 + header_size:
            raise WeightsError(
                f"{path} is truncated: expected at least {8 if size < 8 else 8 + header_size:,} bytes for its header, "
                f"got {size:,} bytes; download or copy it again"
            )
        header_bytes = file.read(header_size)
    try:
        header = json.loads(header_bytes)
        header.pop("__metadata__", None)
        data_size = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        expected_size = 8 + header_size + data_size
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        raise WeightsError(
            f"{path} is not a safetensors file: expected a JSON header after its length, got {header_bytes[:16]!r}; "
            "download or convert it again"
        ) from None
    if size < expected_size:
        raise WeightsError(
            f"{path} is truncated: expected {expected_size:,} bytes by its header, got {size:,} bytes; "
            "download or copy it again"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file_again:
            return set(file_again.keys())
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{path} is damaged ({error}); expected a safetensors file; download or convert it again"
        ) from None
