"""StarCoder2's `config.json`: layer norms, biases, an MLP without a gate."""

from typing import Any

import jax
import pytest
from flax import nnx

from engine.errors import ModelConfigError
from engine.model.config import ModelConfig
from engine.model.families import family_of, starcoder2
from engine.model.transformer import Transformer

MINIMAL: dict[str, Any] = {
    "architectures": ["Starcoder2ForCausalLM"],
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
        family="starcoder2", vocab_size=160, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
        num_kv_heads=2, max_context=128, head_size=8, norm="layer", norm_eps=1e-5, activation="gelu_tanh",
        is_gated=False, has_qkv_bias=True, has_output_bias=True, has_mlp_bias=True, has_tied_embeddings=True,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "use_bias": False}])
def test_every_parameter_has_its_tensor_names_and_is_counted(changes: dict[str, Any]) -> None:
    config = read(**changes)
    state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[1]
    assert {path for path, _ in nnx.to_flat_state(state)} == starcoder2.tensor_names(config).keys()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters


def test_a_window_is_in_every_layer() -> None:
    assert read(sliding_window=24).windows == (24, 24, 24)


def test_the_exact_activation_is_not_its_approximation() -> None:
    assert read(hidden_act="gelu").activation == "gelu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, r"num_hidden_layers is None; expected a positive whole number; download or copy"),
        ({"hidden_size": "32"}, r"hidden_size is '32'; expected a positive whole number; download or copy"),
        ({"hidden_act": "swish2"}, r"hidden_act is 'swish2'; expected one of: silu, .*; choose another model"),
        ({"norm_epsilon": 0}, r"norm_epsilon is 0; expected a positive number"),
        ({"use_bias": "yes"}, r"use_bias is 'yes'; expected true or false; correct the file"),
    ],
)
def test_a_config_that_can_not_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        read(**changes)
