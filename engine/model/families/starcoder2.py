"""StarCoder2: layer norms, biases everywhere, an MLP without a gate, and a window in every layer."""

from typing import Any

import msgspec

from engine.markers import Markers
from engine.model.config import ModelConfig
from engine.model.hugging_face import TensorNames, flag, name_tensors, number, read_decoder, read_windows

ARCHITECTURES: tuple[str, ...] = ("Starcoder2ForCausalLM",)
MARKERS: tuple[Markers, ...] = (
    Markers(  # Lozhkov et al. 2024, "StarCoder 2 and The Stack v2": repository context
        name="starcoder2",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        separator="<file_sep>",
        repository="<repo_name>",
        repository_end="",
        ends=("<|endoftext|>", "<fim_pad>"),
        context="path inside",
    ),
)


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """Read a StarCoder2's `config.json`."""
    has_bias = flag(hf, "use_bias", default=True)
    config = read_decoder(hf, family="starcoder2", activation="gelu_pytorch_tanh", has_tied_embeddings=True)
    return msgspec.structs.replace(
        config,
        norm="layer",
        norm_eps=number(hf, "norm_epsilon", default=1e-5),
        is_gated=False,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=has_bias,
        windows=read_windows(hf, config),
    )


def tensor_names(config: ModelConfig) -> TensorNames:
    """Return Llama's names, but for the MLP's."""
    return name_tensors(config, up="c_fc", down="c_proj")
