"""Gemma's `config.json`: scaled embeddings, norms around 1, heads of 256 unless it says otherwise."""

from typing import Any

import jax
import pytest
from flax import nnx

from engine.errors import ModelConfigError
from engine.model.config import ModelConfig
from engine.model.families import family_of, gemma
from engine.model.transformer import Transformer

MINIMAL: dict[str, Any] = {
    "architectures": ["GemmaForCausalLM"],
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
        family="gemma", vocab_size=160, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
        num_kv_heads=2, max_context=128, head_size=256, norm_eps=1e-6, norm_offset=1.0, activation="gelu_tanh",
        embedding_scale=32**0.5, has_tied_embeddings=True,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": False}])
def test_every_parameter_has_its_tensor_names_and_is_counted(changes: dict[str, Any]) -> None:
    config = read(**changes)
    state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[1]
    assert {path for path, _ in nnx.to_flat_state(state)} == gemma.tensor_names(config).keys()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},  # what the first releases wrote for the approximation
        {"hidden_act": "gelu", "hidden_activation": None},
        {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_activation": "gelu"},
    ],
)
def test_gelu_is_its_approximation_under_all_its_names(changes: dict[str, Any]) -> None:
    assert read(**changes).activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, r"num_hidden_layers is None; expected a positive whole number; download or copy"),
        ({"hidden_size": "32"}, r"hidden_size is '32'; expected a positive whole number; download or copy"),
        ({"hidden_act": "swish2"}, r"hidden_act is 'swish2'; expected one of: silu, .*; choose another model"),
        ({"hidden_activation": "tanh"}, r"hidden_activation is 'tanh'; expected one of"),
        (
            {"use_bidirectional_attention": True},
            r"use_bidirectional_attention is true; expected false .*; choose",
        ),
    ],
)
def test_a_config_that_can_not_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        read(**changes)
