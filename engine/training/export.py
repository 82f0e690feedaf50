"""Export: the last checkpoint as a Hugging Face Llama directory that any runtime loads.

Writes `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`; the
model card beside them, `README.md`, is written by people and left alone.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import msgspec
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from engine.model.config import ModelConfig
from engine.model.families.llama import tensor_names
from engine.training.checkpoint import CheckpointStore
from engine.training.config import TrainingConfig
from engine.training.errors import CheckpointError
from engine.training.trainer import Progress, Tree, make_initial_state
from engine.training.vocabulary import END, PAD, SPECIAL_TOKENS
from engine.weights.load import load_model


def to_hugging_face(params: Tree, model: ModelConfig) -> dict[str, np.ndarray]:
    """Name and lay out weights as Hugging Face's Llama does: matrices unpacked, each `[out, in]`, bfloat16."""
    widths = {
        "qkv": [model.num_heads * model.head_size, *[model.num_kv_heads * model.head_size] * 2],
        "gate_up": [model.intermediate_size] * 2,
    }
    tensors: dict[str, np.ndarray] = {}
    for path, names in tensor_names(model).items():
        leaf = np.asarray(_leaf(params, path), np.float32)
        matrix = str(path[-2]) if len(path) > 1 else ""
        parts = np.split(leaf, np.cumsum(widths[matrix])[:-1], axis=-1) if matrix in widths else [leaf]
        assert len(parts) == len(names)
        for name, part in zip(names, parts, strict=True):
            laid_out = part.T if path[-1] == "kernel" else part
            tensors[name] = np.ascontiguousarray(laid_out).astype(ml_dtypes.bfloat16)
    return tensors


def hugging_face_config(model: ModelConfig) -> dict[str, Any]:
    """Return `config.json`, with the old and the new spelling of what newer releases renamed."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END,
        "dtype": "bfloat16",
        "eos_token_id": END,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": model.num_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_kv_heads,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.has_tied_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": model.vocab_size,
    }


def tokenizer_config(model: ModelConfig) -> dict[str, Any]:
    """Return `tokenizer_config.json`."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(place): {"content": token, **flags} for place, token in enumerate(SPECIAL_TOKENS)},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": SPECIAL_TOKENS[END],
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL_TOKENS[END],
        "model_max_length": model.max_context,
        "pad_token": SPECIAL_TOKENS[PAD],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def last_checkpoint(config: TrainingConfig, store: CheckpointStore) -> tuple[Progress, Tree]:
    """Return progress and weights of the last checkpoint; raises CheckpointError."""
    restored = store.restore_last(jax.eval_shape(make_initial_state(config)))
    if restored is None:
        raise CheckpointError("no checkpoint; expected a trained one; run `python -m engine.training train`")
    return msgspec.json.decode(restored.progress, type=Progress), restored.state.params


def load_exported(config: TrainingConfig, tokenizer_path: Path, directory: Path) -> tuple[int, Tree]:
    """Return tokens read and weights of an exported model of the same shape and vocabulary; raises CheckpointError."""
    loaded = load_model(directory, dtype=np.float32)
    if loaded.config != config.shape.resolve():
        raise CheckpointError(
            f"{directory} holds a model of the shape {loaded.config}; expected {config.shape.resolve()}; "
            "change [shape] of the training config or begin with another model"
        )
    if (directory / "tokenizer.json").read_bytes() != tokenizer_path.read_bytes():
        raise CheckpointError(
            f"{directory / 'tokenizer.json'} differs from {tokenizer_path}; expected one vocabulary for both; "
            "copy the model's into the work folder"
        )
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        num_tokens = int((file.metadata() or {}).get("num_tokens", 0))
    return num_tokens, loaded.weights


def export_model(config: TrainingConfig, store: CheckpointStore, tokenizer_path: Path, out: Path) -> int:
    """Write the last checkpoint to `out` and return its step; raises CheckpointError.

    Every file is written aside and renamed: a reader finds the old model or the new one.
    """
    model = config.shape.resolve()
    progress, params = last_checkpoint(config, store)
    metadata = {"format": "pt", "num_tokens": str(progress.num_tokens)}
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "model.safetensors", save(to_hugging_face(params, model), metadata=metadata))
    _write(out / "config.json", _json(hugging_face_config(model)))
    _write(out / "tokenizer_config.json", _json(tokenizer_config(model)))
    _write(out / "generation_config.json", _json({"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}))
    partial = out / "tokenizer.json.partial"
    shutil.copyfile(tokenizer_path, partial)
    partial.rename(out / "tokenizer.json")
    return progress.step


def _leaf(params: Tree, path: tuple[str | int, ...]) -> Any:
    for part in path:
        params = params[part]
    return params


def _json(content: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.rename(path)
