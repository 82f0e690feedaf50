"""Llama and everything that keeps its layout: Llama 1 to 3, CodeLlama, DeepSeek-Coder, Granite, the starter model."""

from typing import Any

import msgspec

from engine.markers import Markers
from engine.model.config import ModelConfig
from engine.model.hugging_face import TensorNames, flag, name_tensors, read_decoder

ARCHITECTURES: tuple[str, ...] = ("LlamaForCausalLM",)
MARKERS: tuple[Markers, ...] = (
    Markers(  # the starter model
        name="fim_prefix+file_sep",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        separator="<|file_sep|>",
        ends=("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>"),
    ),
    Markers(
        name="codellama",
        prefix="▁<PRE>",
        suffix="▁<SUF>",
        middle="▁<MID>",
        begin="<s>",
        ends=("▁<EOT>", "</s>"),
    ),
    Markers(
        name="deepseek-coder",
        prefix="<｜fim▁begin｜>",
        suffix="<｜fim▁hole｜>",
        middle="<｜fim▁end｜>",
        begin="<｜begin▁of▁sentence｜>",
        ends=("<｜end▁of▁sentence｜>", "<|EOT|>"),
    ),
    Markers(  # Granite's code models and others with the vocabulary of the first StarCoder
        name="starcoder",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        separator="<filename>",
        ends=("<|endoftext|>", "<fim_pad>", "<reponame>"),
    ),
    Markers(
        name="starcoder-plain",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        ends=("<|endoftext|>", "<fim_pad>"),
    ),
    Markers(
        name="fim_prefix",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        ends=("<|endoftext|>", "<|fim_pad|>"),
    ),
)


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """Read a Llama's `config.json`."""
    has_attention_bias = flag(hf, "attention_bias")
    return msgspec.structs.replace(
        read_decoder(hf, family="llama"),
        has_qkv_bias=has_attention_bias,
        has_output_bias=has_attention_bias,
        has_mlp_bias=flag(hf, "mlp_bias"),
    )


def tensor_names(config: ModelConfig) -> TensorNames:
    """Return Llama's names, which all others share but for the exceptions they state."""
    return name_tensors(config)
