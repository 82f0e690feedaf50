"""Gemma 1 and CodeGemma: norms that store their scale less 1, scaled embeddings, heads of a size of their own."""

from typing import Any

import msgspec

from engine.errors import ModelConfigError
from engine.markers import Markers
from engine.model.config import ModelConfig
from engine.model.hugging_face import TensorNames, flag, name_tensors, read_activation, read_decoder

ARCHITECTURES: tuple[str, ...] = ("GemmaForCausalLM",)
MARKERS: tuple[Markers, ...] = (
    Markers(  # CodeGemma Team 2024, "CodeGemma: Open Code Models Based on Gemma", table 1
        name="codegemma",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        separator="<|file_separator|>",
        begin="<bos>",
        ends=("<eos>", "<start_of_turn>", "<end_of_turn>"),
        context="outside",
    ),
)


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """Read a Gemma's `config.json`, where `gelu` has always meant its approximation by tanh."""
    if flag(hf, "use_bidirectional_attention"):
        raise ModelConfigError(
            "config.json: use_bidirectional_attention is true; expected false for a model that writes text; "
            "choose another model"
        )
    config = read_decoder(hf, family="gemma", head_size=256, activation="gelu_pytorch_tanh", has_tied_embeddings=True)
    activation = read_activation(hf, "hidden_activation", default=hf.get("hidden_act") or "gelu_pytorch_tanh")
    has_attention_bias = flag(hf, "attention_bias")
    return msgspec.structs.replace(
        config,
        activation="gelu_tanh" if activation == "gelu" else activation,
        norm_offset=1.0,
        embedding_scale=config.hidden_size**0.5,
        has_qkv_bias=has_attention_bias,
        has_output_bias=has_attention_bias,
    )


def tensor_names(config: ModelConfig) -> TensorNames:
    """Return Llama's names."""
    return name_tensors(config)
