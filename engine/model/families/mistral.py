"""Mistral and Codestral: Llama, with a window in every layer of the first version."""

from typing import Any

import msgspec

from engine.markers import Markers
from engine.model.config import ModelConfig
from engine.model.hugging_face import TensorNames, name_tensors, read_decoder, read_windows

ARCHITECTURES: tuple[str, ...] = ("MistralForCausalLM",)
MARKERS: tuple[Markers, ...] = (
    Markers(  # the tokenizers of mistral-common from version 2 on
        name="codestral",
        prefix="[PREFIX]",
        suffix="[SUFFIX]",
        middle="[MIDDLE]",
        begin="<s>",
        ends=("</s>", "[INST]", "[/INST]"),
        is_suffix_first=True,
    ),
)


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """Read a Mistral's `config.json`."""
    config = read_decoder(hf, family="mistral")
    return msgspec.structs.replace(config, windows=read_windows(hf, config))


def tensor_names(config: ModelConfig) -> TensorNames:
    """Return Llama's names."""
    return name_tensors(config)
