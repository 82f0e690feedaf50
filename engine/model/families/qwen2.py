"""Qwen2, Qwen2.5 and Qwen2.5-Coder: Llama with biases on Q, K and V, and windows where a config asks for them."""

from typing import Any

import msgspec

from engine.markers import Markers
from engine.model.config import ModelConfig
from engine.model.hugging_face import TensorNames, flag, integer, name_tensors, read_decoder, read_windows

ARCHITECTURES: tuple[str, ...] = ("Qwen2ForCausalLM",)
MARKERS: tuple[Markers, ...] = (
    Markers(  # Qwen2.5-Coder and Qwen3 (github.com/QwenLM/Qwen2.5-Coder, examples/Qwen2.5-Coder-repolevel-fim.py)
        name="qwen",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        separator="<|file_sep|>",
        repository="<|repo_name|>",
        also=("<|im_end|>",),
        ends=("<|endoftext|>", "<|fim_pad|>", "<|im_start|>"),
        context="outside",
    ),
)


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """Read a Qwen2's `config.json`."""
    config = read_decoder(hf, family="qwen2")
    return msgspec.structs.replace(config, has_qkv_bias=True, windows=windows_of(hf, config))


def windows_of(hf: dict[str, Any], config: ModelConfig) -> tuple[int | None, ...]:
    """Return the layers' windows: none unless `use_sliding_window`, and none below `max_window_layers`."""
    if not flag(hf, "use_sliding_window"):
        return ()
    every_layer = hf.get("max_window_layers") == 0
    return read_windows(hf, config, first_layer=0 if every_layer else integer(hf, "max_window_layers", default=28))


def tensor_names(config: ModelConfig) -> TensorNames:
    """Return Llama's names."""
    return name_tensors(config)
