"""Reading Llama's `config.json` in both its forms, and refusing what would run but answer wrongly."""

from typing import Any

import jax
import pytest
from flax import nnx

from engine.errors import ModelConfigError
from engine.model.config import ModelConfig, RopeScaling
from engine.model.families import FAMILIES, family_of, llama
from engine.model.transformer import Transformer

MINIMAL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_every_file_of_the_package_is_a_family_that_can_be_found() -> None:
    for family in FAMILIES:
        for name in family.ARCHITECTURES:
            assert family_of({"architectures": [name]}) is family
    assert llama in FAMILIES
    assert len({family.ARCHITECTURES for family in FAMILIES}) == len(FAMILIES) == 6


def read(**changes: Any) -> ModelConfig:
    hf = {**MINIMAL, **changes}
    return family_of(hf).read_config(hf)


def test_what_a_config_leaves_out_takes_the_defaults_of_the_architecture() -> None:
    assert read() == ModelConfig(
        family="llama",
        vocab_size=160,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_size=8,
        max_context=128,
        norm_eps=1e-6,
    )


def test_null_means_left_out() -> None:
    nulls = ("num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters", "eos_token_id", "attention_bias")
    assert read(**dict.fromkeys(nulls)) == read()


def test_the_old_and_the_new_form_of_rope_settings_mean_the_same() -> None:
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 100.0, **LLAMA3})
    assert new.rope_theta == 100.0
    assert new.rope_scaling == RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )
    for kind in ("type", "rope_type"):
        assert read(rope_theta=100.0, rope_scaling={kind: "llama3", **LLAMA3}) == new


def test_linear_scaling_is_read() -> None:
    config = read(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4})
    assert (config.rope_theta, config.rope_scaling) == (5e5, RopeScaling(kind="linear", factor=4.0))


def test_plain_rope_in_the_new_form_has_no_scaling() -> None:
    config = read(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert (config.rope_theta, config.rope_scaling) == (5e5, None)


@pytest.mark.parametrize(("eos", "expected"), [(7, (7,)), ([7, 9], (7, 9)), (None, ())])
def test_one_several_or_no_end_tokens_are_read(eos: object, expected: tuple[int, ...]) -> None:
    assert read(eos_token_id=eos).eos_token_ids == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 2},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ],
)
def test_every_parameter_has_its_tensor_names_and_is_counted(changes: dict[str, Any]) -> None:
    config = read(**changes)
    state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[1]
    assert {path for path, _ in nnx.to_flat_state(state)} == llama.tensor_names(config).keys()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            r"architecture MambaForCausalLM; expected one of: GemmaForCausalLM, LlamaForCausalLM, MistralForCausalLM, "
            r"Qwen2ForCausalLM, Qwen3ForCausalLM, Starcoder2ForCausalLM; convert or choose another model",
        ),
        ({"architectures": None}, r"architecture none; expected one of"),
        ({"hidden_size": "32"}, r"hidden_size is '32'; expected a positive whole number; download or copy"),
        ({"vocab_size": None}, r"vocab_size is None; expected a positive whole number"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0; expected a positive whole number"),
        (
            {"num_key_value_heads": 3},
            r"num_attention_heads is 4; expected a multiple of num_key_value_heads, got 3; the file is damaged",
        ),
        ({"head_dim": 7}, r"head size is 7; expected an even number, as rotary embeddings turn pairs"),
        (
            {"hidden_act": "relu2"},
            r"hidden_act is 'relu2'; expected one of: silu, gelu, gelu_pytorch_tanh; choose another model",
        ),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\]; expected one of: silu"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            r"quantization_config; expected plain weights; choose the model's unquantised checkpoint",
        ),
        ({"rms_norm_eps": "small"}, r"rms_norm_eps is 'small'; expected a positive number; download or copy"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings is 'yes'; expected true or false; correct the file"),
        ({"eos_token_id": ["</s>"]}, r"eos_token_id is \['</s>'\]; expected a token id or a list of them"),
        ({"rope_scaling": "linear"}, r"RoPE scaling is 'linear'; expected an object; download or copy"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            r"RoPE scaling is 'yarn'; expected 'default', 'linear' or 'llama3'; choose another model",
        ),
        ({"rope_scaling": {"type": "linear"}}, r"factor is None; expected a positive number"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, r"low_freq_factor is None; expected a positive"),
        ({"rope_parameters": {"rope_theta": True}}, r"rope_theta is True; expected a positive number"),
    ],
)
def test_a_config_that_can_not_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        read(**changes)
