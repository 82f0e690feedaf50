"""Qwen3's `config.json`: norms on queries and keys, heads of 128 unless it says otherwise."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from engine.errors import ModelConfigError, WeightsError
from engine.model.config import ModelConfig
from engine.model.families import family_of, qwen3
from engine.model.transformer import Transformer
from engine.weights.load import load_model

MODELS = Path(__file__).parents[3] / "fixtures" / "models"
MINIMAL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def read(**changes: Any) -> ModelConfig:
    hf = {**MINIMAL, **changes}
    return family_of(hf).read_config(hf)


def test_what_a_config_leaves_out_takes_the_defaults_of_the_architecture() -> None:
    assert read() == ModelConfig(
        family="qwen3", vocab_size=160, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
        num_kv_heads=2, max_context=128, head_size=128, norm_eps=1e-6, has_qk_norm=True,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"head_dim": 16, "attention_bias": True}])
def test_every_parameter_has_its_tensor_names_and_is_counted(changes: dict[str, Any]) -> None:
    config = read(**changes)
    state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[1]
    assert {path for path, _ in nnx.to_flat_state(state)} == qwen3.tensor_names(config).keys()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters


def test_windows_are_read_as_qwen2_has_them() -> None:
    config = read(use_sliding_window=True, sliding_window=24, max_window_layers=2)
    assert config.windows == (None, None, 24)


def test_a_checkpoint_without_norms_on_queries_and_keys_is_refused(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(MODELS / "tiny-qwen3", tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "q_norm" not in name}, directory / "model.safetensors")
    message = r"has no tensor model.layers.[01].self_attn.q_norm.weight; expected it by config.json"
    with pytest.raises(WeightsError, match=message):
        load_model(directory, dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, r"num_hidden_layers is None; expected a positive whole number; download or copy"),
        ({"hidden_size": "32"}, r"hidden_size is '32'; expected a positive whole number; download or copy"),
        ({"hidden_act": "swish2"}, r"hidden_act is 'swish2'; expected one of: silu, .*; choose another model"),
        ({"head_dim": 15}, r"head size is 15; expected an even number"),
        ({"attention_bias": "no"}, r"attention_bias is 'no'; expected true or false"),
    ],
)
def test_a_config_that_can_not_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        read(**changes)
