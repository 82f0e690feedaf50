import json

import jax
import ml_dtypes
import msgspec
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from engine.model.families import family_of
from engine.model.transformer import attend_causally
from engine.training.batches import InlineBatches
from engine.training.checkpoint import CheckpointStore
from engine.training.errors import CheckpointError
from engine.training.examples import ExampleMaker
from engine.training.export import export_model, hugging_face_config, load_exported, to_hugging_face
from engine.training.trainer import Trainer, initial_params, merge_params
from engine.training.vocabulary import save_vocabulary


@pytest.fixture
def exported(documents, tokenizer, config, tmp_path):
    """A model trained for a step and exported: the directory and the weights it was made of."""
    store = CheckpointStore(tmp_path / "checkpoints")
    examples, held_out = (
        ExampleMaker(documents, tokenizer, config.examples, split=split, seed=1) for split in ("train", "held-out")
    )
    trainer = Trainer(config, InlineBatches(examples), held_out, store, tmp_path / "log.jsonl")
    trainer.run(num_steps=1, console=Console(quiet=True))
    save_vocabulary(tokenizer, tmp_path / "tokenizer.json")
    reader = CheckpointStore(tmp_path / "checkpoints", is_reader=True)
    assert export_model(config, reader, tmp_path / "tokenizer.json", tmp_path / "out") == 1
    reader.close()
    store.close()
    return tmp_path / "out", trainer.state.params


def test_an_export_has_every_file_and_every_tensor_of_a_llama(exported, config) -> None:
    directory, params = exported
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tensors = load_file(directory / "model.safetensors")
    model = config.shape.resolve()
    assert sum(tensor.size for tensor in tensors.values()) == model.num_parameters
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 32)
    assert all(tensor.dtype == ml_dtypes.bfloat16 for tensor in tensors.values())
    qkv = np.asarray(params["layers"][0]["qkv"]["kernel"]).astype(ml_dtypes.bfloat16)
    parts = [tensors[f"model.layers.0.self_attn.{part}_proj.weight"].T for part in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), qkv)


def test_config_json_reads_back_as_the_model_that_was_trained(exported, config) -> None:
    directory, _ = exported
    hf = json.loads((directory / "config.json").read_text())
    assert family_of(hf).read_config(hf) == config.shape.resolve()
    assert hf == hugging_face_config(config.shape.resolve())
    del hf["rope_theta"], hf["dtype"], hf["rope_scaling"]
    assert family_of(hf).read_config(hf) == config.shape.resolve(), "the new spelling alone is enough"


def test_the_exported_tensors_compute_what_the_weights_do(config) -> None:
    model = config.shape.resolve()
    params = initial_params(model, 3)
    tensors = to_hugging_face(params, model)
    gate_up = np.asarray(params["layers"][1]["gate_up"]["kernel"])
    x = np.linspace(-1, 1, model.hidden_size, dtype=np.float32)
    gate = tensors["model.layers.1.mlp.gate_proj.weight"].astype(np.float32) @ x
    np.testing.assert_allclose(gate, (x @ gate_up)[: model.intermediate_size], atol=0.02)
    tokens = np.arange(12, dtype=np.int32)[None] + 7
    hidden = merge_params(model, params)(tokens, np.arange(12)[None], attend_causally)
    assert hidden.shape == (1, 12, model.hidden_size)
    assert jax.numpy.isfinite(hidden).all()


def test_an_export_loads_back_with_its_tokens_to_train_on(exported, config, tmp_path) -> None:
    directory, params = exported
    num_tokens, loaded = load_exported(config, tmp_path / "tokenizer.json", directory)
    assert num_tokens == 2 * 64
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(np.asarray(ours).astype(ml_dtypes.bfloat16), theirs)


def test_weights_of_another_shape_or_vocabulary_are_not_begun_with(exported, config, tmp_path) -> None:
    directory, _ = exported
    wider = msgspec.structs.replace(config, shape=msgspec.structs.replace(config.shape, intermediate_size=48))
    with pytest.raises(CheckpointError, match=r"intermediate_size=32.*; expected .*intermediate_size=48.*; change"):
        load_exported(wider, tmp_path / "tokenizer.json", directory)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"differs from .*other.json; expected one vocabulary for both"):
        load_exported(config, tmp_path / "other.json", directory)


def test_exporting_without_a_checkpoint_says_what_to_run(config, tmp_path) -> None:
    store = CheckpointStore(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no checkpoint; .* run `python -m engine\.training train`"):
        export_model(config, store, tmp_path / "tokenizer.json", tmp_path / "out")
    store.close()
