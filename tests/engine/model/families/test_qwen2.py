"""Qwen2's `config.json`: biases on Q, K and V, and windows only where they are switched on."""

from typing import Any

import jax
import pytest
from flax import nnx

from engine.errors import ModelConfigError
from engine.model.config import ModelConfig
from engine.model.families import family_of, qwen2
from engine.model.transformer import Transformer

MINIMAL: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
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
        family="qwen2", vocab_size=160, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
        num_kv_heads=2, max_context=128, head_size=8, norm_eps=1e-6, has_qkv_bias=True,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
def test_every_parameter_has_its_tensor_names_and_is_counted(changes: dict[str, Any]) -> None:
    config = read(**changes)
    state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[1]
    assert {path for path, _ in nnx.to_flat_state(state)} == qwen2.tensor_names(config).keys()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"use_sliding_window": False}, ()),
        ({"sliding_window": None}, ()),
        ({"sliding_window": 128}, ()),  # the context never exceeds it
        ({"max_window_layers": 3}, ()),
        ({}, ()),  # of so few layers none is above the 28th
        ({"max_window_layers": 1}, (None, 24, 24)),
        ({"max_window_layers": 0}, (24, 24, 24)),
        ({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}, (24, None, None)),
    ],
)
def test_windows_begin_above_max_window_layers_or_where_layer_types_says(
    changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert read(**{"use_sliding_window": True, "sliding_window": 24, **changes}).windows == windows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, r"num_hidden_layers is None; expected a positive whole number; download or copy"),
        ({"hidden_size": "32"}, r"hidden_size is '32'; expected a positive whole number; download or copy"),
        ({"hidden_act": "swish2"}, r"hidden_act is 'swish2'; expected one of: silu, .*; choose another model"),
        ({"use_sliding_window": 1}, r"use_sliding_window is 1; expected true or false; correct the file"),
        (
            {"use_sliding_window": True, "sliding_window": "4k"},
            r"sliding_window is '4k'; expected a positive whole",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": -1},
            r"max_window_layers is -1; expected a positive whole number",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 24, "layer_types": ["full_attention"]},
            r"layer_types is \['full_attention'\]; expected 3 of 'full_attention', 'sliding_attention', one per ",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 24, "layer_types": ["linear_attention"] * 3},
            r"layer_types is \['linear_attention', .*; choose another model",
        ),
    ],
)
def test_a_config_that_can_not_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        read(**changes)
