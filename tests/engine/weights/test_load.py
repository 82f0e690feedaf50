"""Model directories as they are, and as they must not be."""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from engine.errors import ModelConfigError, ModelError, WeightsError
from engine.model.families import family_of
from engine.model.transformer import Transformer
from engine.weights import load
from engine.weights.load import LoadedModel, load_model, random_model, read_model_config

MODELS = Path(__file__).parents[2] / "fixtures" / "models"


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[str], Path]:
    def copy(variant: str) -> Path:
        return Path(shutil.copytree(MODELS / variant, tmp_path / variant))

    return copy


def rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the tensors of an unsharded model."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, directory / "model.safetensors")


def assert_same_weights(one: LoadedModel, other: LoadedModel) -> None:
    jax.tree.map(np.testing.assert_array_equal, one.weights, other.weights)


def test_matrices_are_transposed_and_packed_in_the_order_q_k_v_and_gate_up() -> None:
    tensors = load_file(MODELS / "biases" / "model.safetensors")
    layer = load_model(MODELS / "biases", dtype=jnp.float32).weights["layers"][1]
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    for kind, ours in (("weight", "kernel"), ("bias", "bias")):
        qkv = np.concatenate([tensors[f"{attention}.{part}_proj.{kind}"] for part in "qkv"])
        np.testing.assert_array_equal(layer["qkv"][ours], qkv.T)
        gate_up = np.concatenate([tensors[f"{mlp}.{part}_proj.{kind}"] for part in ("gate", "up")])
        np.testing.assert_array_equal(layer["gate_up"][ours], gate_up.T)
        np.testing.assert_array_equal(layer["down"][ours], tensors[f"{mlp}.down_proj.{kind}"].T)


def test_weights_are_plain_arrays_of_the_asked_type_on_the_default_device() -> None:
    model = load_model(MODELS / "untied-gqa", dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(model.weights)
    assert sum(leaf.size for leaf in leaves) == model.config.num_parameters
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16 for leaf in leaves)


def test_shards_and_one_file_hold_the_same_model(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("sharded")
    sharded = load_model(directory, dtype=jnp.float32)
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(directory.glob("model-*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (directory / "model.safetensors.index.json").unlink()
    save_file(tensors, directory / "model.safetensors")
    assert_same_weights(load_model(directory, dtype=jnp.float32), sharded)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_a_checkpoint_may_be_of_any_plain_float_type(dtype: Any, copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("bfloat16")
    expected = load_model(directory, dtype=jnp.float32)
    rewrite(directory, lambda tensors: tensors.update({name: t.astype(dtype) for name, t in tensors.items()}))
    loaded = load_model(directory, dtype=jnp.float32)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-7), loaded.weights, expected.weights)


def test_a_redundant_head_beside_tied_embeddings_is_ignored(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    plain = load_model(directory, dtype=jnp.float32)
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert "head" not in plain.weights
    assert_same_weights(load_model(directory, dtype=jnp.float32), plain)


def test_rotary_frequencies_that_old_checkpoints_carry_are_ignored(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    frequencies = np.ones(4, np.float32)
    rewrite(directory, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies}))
    load_model(directory, dtype=jnp.float32)


def test_a_random_model_has_the_shape_of_a_loaded_one_and_depends_on_its_seed_alone() -> None:
    loaded = load_model(MODELS / "biases", dtype=jnp.float32)
    one, same, other = (random_model(loaded.config, seed=seed, dtype=jnp.float32) for seed in (1, 1, 2))
    assert one.graphdef == loaded.graphdef
    assert jax.tree.map(jnp.shape, one.weights) == jax.tree.map(jnp.shape, loaded.weights)
    assert_same_weights(one, same)
    assert not np.array_equal(one.weights["embedding"], other.weights["embedding"])


def test_a_random_model_can_be_of_half_precision() -> None:
    config = read_model_config(MODELS / "untied-gqa")
    leaves = jax.tree.leaves(random_model(config, seed=0, dtype=jnp.bfloat16).weights)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


# Over several devices, and in little memory


class CountingView:
    """A tensor in a file that counts the elements read from it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.num_read = array, 0

    def __getitem__(self, index: Any) -> np.ndarray:
        self.num_read += self.array[index].size
        return self.array[index]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), part_bytes=st.sampled_from([1, 100, 1 << 20]), is_kernel=st.booleans())
def test_of_packed_tensors_exactly_the_slices_asked_for_are_read(
    data: st.DataObject, part_bytes: int, is_kernel: bool
) -> None:
    sizes, num_inputs = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)), data.draw(st.integers(1, 9))
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((num_inputs, size)).astype(np.float32) for size in sizes]
    views = [CountingView(part.T if is_kernel else part) for part in parts]
    packed = np.concatenate(parts, axis=1)
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in packed.shape]
    index = tuple(slice(start, max(stop, start + 1)) for start, stop in bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_PART_BYTES", part_bytes)
        got = load._read_packed(
            list(zip(views, sizes, strict=True)), index, shape=packed.shape, dtype=np.dtype(np.float64),
            is_kernel=is_kernel,
        )  # fmt: skip
    np.testing.assert_array_equal(got, packed[index])
    assert sum(view.num_read for view in views) == packed[index].size


def run_alone(code: str, *arguments: str, **environment: str) -> str:
    """Run code in a process of its own; return what it printed."""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


SHARDED = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from engine.weights import load

mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,))
read = []
plain = load._read_packed
def counted(parts, index, **rest):
    got = plain(parts, index, **rest)
    read.append(got.size)
    return got
load._read_packed = counted

def place(path, shape):
    axis = {"kernel": PartitionSpec(None, "tensor"), "embedding": PartitionSpec("tensor", None)}
    return NamedSharding(mesh, axis.get(path[-1], PartitionSpec()))

directory = Path(sys.argv[1])
sharded = load.load_model(directory, dtype=np.float32, place=place)
assert sum(read) == sharded.config.num_parameters, (sum(read), sharded.config.num_parameters)
kernel = sharded.weights["layers"][0]["qkv"]["kernel"]
assert {shard.data.shape[1] * 4 for shard in kernel.addressable_shards} == {kernel.shape[1]}
whole = load.load_model(directory, dtype=np.float32)
jax.tree.map(np.testing.assert_array_equal, sharded.weights, whole.weights)
print(len(jax.devices()), "devices")
"""


@pytest.mark.parametrize("variant", ["biases", "sharded"])
def test_each_device_gets_its_slices_and_nothing_is_read_twice(variant: str) -> None:
    assert "4 devices" in run_alone(SHARDED, str(MODELS / variant), JAX_NUM_CPU_DEVICES="4")


FRUGAL = """
import sys, threading, time
from pathlib import Path
import jax, jax.numpy as jnp
from engine.model.matrix import hold
from engine.model.families import family_of
from engine.model.transformer import Transformer
from engine.weights import load
from engine.weights.load import load_model

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def keep(path, parameter):
    form = sys.argv[2]
    if path[-1] not in ("kernel", "embedding") or form == "plain":
        return parameter
    return hold(parameter, form, is_table=path[-1] == "embedding")

load_model(Path(sys.argv[3]), dtype=jnp.float32, hold=keep)  # everything imported, every thread started
before, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
loaded = load_model(Path(sys.argv[1]), dtype=jnp.float32, hold=keep)
done.set()
watcher.join()
print(peak[0] - before, sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.weights)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("form", ["plain", "int8"])
def test_loading_holds_little_more_than_the_weights(tmp_path: Path, form: str) -> None:
    small, large = {"hidden_size": 32, "vocab_size": 160}, {"hidden_size": 512, "vocab_size": 16_000}
    paths = []
    for name, sizes in (("small", small), ("large", large)):
        config = json.loads((MODELS / "tied-gqa" / "config.json").read_text()) | sizes
        config |= {"intermediate_size": 4 * sizes["hidden_size"], "num_hidden_layers": 8}
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        save_half_precision(directory)
        paths.append(str(directory))
    peak, weights = map(int, run_alone(FRUGAL, paths[1], form, paths[0]).split())
    largest = 512 * 16_000 * 4
    assert weights > 2 * largest / (4 if form == "int8" else 1)
    assert peak < weights + 2 * largest + (32 << 20), f"{peak:,} bytes for {weights:,} of weights"


def save_half_precision(directory: Path) -> None:
    """Write zeros for every tensor that the config promises, in bfloat16."""
    hf = json.loads((directory / "config.json").read_text())
    config = read_model_config(directory)
    names = family_of(hf).tensor_names(config)
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
        sizes = load._packed_sizes(config, path) or leaf.shape[-1:]
        for name, size in zip(names[path], sizes, strict=True):
            shape = (*leaf.shape[:-1], size)
            tensors[name] = np.zeros(shape[::-1] if path[-1] == "kernel" else shape, ml_dtypes.bfloat16)
    save_file(tensors, directory / "model.safetensors")


# Directories and config.json


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    message = r"model directory .*none does not exist; expected a Hugging Face model directory with .*; check the path"
    with pytest.raises(ModelConfigError, match=message):
        load_model(tmp_path / "none", dtype=jnp.float32)


def test_a_file_in_place_of_a_directory_is_refused() -> None:
    message = (
        r"model.safetensors is a file; expected a Hugging Face model directory .*; name the directory that holds it"
    )
    with pytest.raises(ModelConfigError, match=message):
        read_model_config(MODELS / "biases" / "model.safetensors")


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"no config.json in .*; expected .*; check the path or download"):
        read_model_config(tmp_path)


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": [')
    with pytest.raises(
        ModelConfigError, match=r"config.json is not JSON \(.*\); expected a JSON object; download or copy"
    ):
        read_model_config(tmp_path)


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelConfigError, match=r"config.json holds a list; expected a JSON object; download or copy"):
        read_model_config(tmp_path)


# Files of weights


def test_pickled_weights_are_refused_unopened(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    message = (
        r"no weights in .*; expected model.safetensors or model.safetensors.index.json, got pytorch_model.bin; "
        r".* never opened, because that runs code: convert the model to safetensors"
    )
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


def test_a_directory_without_weights_is_refused(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    (directory / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no weights in .*, got neither;"):
        load_model(directory, dtype=jnp.float32)


def test_an_index_that_is_not_json_is_refused(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("sharded")
    (directory / "model.safetensors.index.json").write_text("weight_map")
    with pytest.raises(WeightsError, match=r"index.json is not JSON \(.*\); expected a JSON object; download or copy"):
        load_model(directory, dtype=jnp.float32)


@pytest.mark.parametrize("index", ['{"metadata": {}}', '{"weight_map": {"lm_head.weight": 1}}'])
def test_an_index_without_its_map_is_refused(index: str, copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("sharded")
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=r"has no weight_map of tensor names to file names; expected one; download"):
        load_model(directory, dtype=jnp.float32)


def test_a_missing_shard_is_named(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("sharded")
    (directory / "model-00002-of-00002.safetensors").unlink()
    message = (
        r"names the file model-00002-of-00002.safetensors; expected it beside the index, got no such file; download"
    )
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


def test_an_index_does_not_lead_out_of_its_directory(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("sharded")
    copy_of("tied-gqa")
    outside = {"weight_map": {"lm_head.weight": "../tied-gqa/model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(WeightsError, match=r"names the file \.\./tied-gqa/model.safetensors; expected it beside"):
        load_model(directory, dtype=jnp.float32)


def test_a_tensor_that_is_not_in_its_shard_is_named(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("sharded")
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    path.write_text(json.dumps(index))
    message = r"places the tensor model.norm.weight in model-00001.*; expected it there, got \d+ others; .*download"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


@pytest.mark.parametrize("shards", ["tied-gqa", "sharded"])
def test_truncated_data_is_noticed_before_anything_is_read(shards: str, copy_of: Callable[[str], Path]) -> None:
    path = sorted(copy_of(shards).glob("model*.safetensors"))[-1]
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    message = (
        rf"is truncated: expected {len(data):,} bytes by its header, got {len(data) - 100:,} bytes; download or copy"
    )
    with pytest.raises(WeightsError, match=message):
        load_model(path.parent, dtype=jnp.float32)


@pytest.mark.parametrize(("size", "expected"), [(0, "8"), (5, "8"), (8, r"[\d,]+"), (50, r"[\d,]+")])
def test_a_truncated_header_is_noticed(size: int, expected: str, copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    message = rf"is truncated: expected at least {expected} bytes for its header, got {size} bytes; download or copy"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


@pytest.mark.parametrize("header", [b"<html>  ", b"[1, 2]  ", b'{"a": 1}', b"\xff" * 8])
def test_a_file_that_is_no_safetensors_is_refused(header: bytes, copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 8) + header + bytes(100))
    message = r"is not a safetensors file: expected a JSON header after its length, got b'.*'; download or convert"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


def test_a_header_that_contradicts_itself_is_refused(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [32], "data_offsets": [0, 16]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(WeightsError, match=r"is damaged \(.*\); expected a safetensors file; download or convert"):
        load_model(directory, dtype=jnp.float32)


@settings(max_examples=50)
@given(
    start=st.integers(0, 1500), overwritten=st.binary(min_size=1, max_size=4) | st.sampled_from([b"16", b"]]", b"I8"])
)
def test_whatever_is_overwritten_in_a_header_the_error_is_one_of_ours(start: int, overwritten: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "damaged"
        shutil.copytree(MODELS / "wide-heads", directory)
        with (directory / "model.safetensors").open("r+b") as file:
            file.seek(start)
            file.write(overwritten)
        with contextlib.suppress(ModelError):
            load_model(directory, dtype=jnp.float32)


# Tensors


def test_a_missing_tensor_is_named(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("untied-gqa")
    rewrite(directory, lambda tensors: tensors.__delitem__("lm_head.weight"))
    message = r"has no tensor lm_head.weight; expected it by config.json, got 20 others; the download is incomplete"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


def test_a_tensor_that_the_config_does_not_promise_is_named(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(directory, lambda tensors: tensors.update({bias: np.zeros(32, np.float32)}))
    message = rf"has a tensor {bias} unknown to config.json; expected 20 tensors, got 21; .* another model"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.1.self_attn.k_proj.weight", (32, 32), r"\[16, 32\]"),
        ("model.embed_tokens.weight", (161, 32), r"\[160, 32\]"),
        ("model.norm.weight", (32, 1), r"\[32\]"),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    name: str, shape: tuple[int, ...], expected: str, copy_of: Callable[[str], Path]
) -> None:
    directory = copy_of("tied-gqa")
    rewrite(directory, lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
    got = str(list(shape)).replace("[", r"\[").replace("]", r"\]")
    message = rf"tensor {name} in .* has the shape {got}; expected {expected} by config.json; .* different models"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


def test_quantised_tensors_are_refused(copy_of: Callable[[str], Path]) -> None:
    directory = copy_of("tied-gqa")
    rewrite(directory, lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.int8)}))
    message = r"tensor model.norm.weight in .* is I8; expected one of F64, F32, F16, BF16; quantised .* unquantised one"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=jnp.float32)


def test_every_refusal_is_a_model_error() -> None:
    assert issubclass(ModelConfigError, ModelError)
    assert issubclass(WeightsError, ModelError)


@pytest.mark.parametrize(("name", "error"), [("vocab_size", WeightsError), ("num_hidden_layers", ModelConfigError)])
def test_a_config_that_promises_more_than_any_machine_holds_is_refused_at_once(
    tmp_path: Path, name: str, error: type[Exception]
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(Path(__file__).parents[2] / "fixtures" / "models" / "tiny-llama", directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, name: 10**9}))
    with pytest.raises(error, match=r"1000000000|1,000,000,000"):
        load_model(directory, dtype=np.float32)
