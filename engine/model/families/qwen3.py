"""Qwen3's dense models: Llama with a norm on each head's query and key, and heads of a size of their own."""

from typing import Any

import msgspec

from engine.markers import Markers
from engine.model.config import ModelConfig
from engine.model.families.qwen2 import windows_of
from engine.model.hugging_face import TensorNames, flag, name_tensors, read_decoder

ARCHITECTURES: tuple[str, ...] = ("Qwen3ForCausalLM",)
MARKERS: tuple[Markers, ...] = ()
"""Qwen2.5-Coder's."""


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """Read a Qwen3's `config.json`."""
    has_attention_bias = flag(hf, "attention_bias")
    config = read_decoder(hf, family="qwen3", head_size=128)
    return msgspec.structs.replace(
        config,
        has_qk_norm=True,
        has_qkv_bias=has_attention_bias,
        has_output_bias=has_attention_bias,
        windows=windows_of(hf, config),
    )


def tensor_names(config: ModelConfig) -> TensorNames:
    """Return Llama's names, the norms among them."""
    return name_tensors(config)
