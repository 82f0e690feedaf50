"""Llama and everything that keeps its layout: Llama 1 to 3, CodeLlama, DeepSeek-Coder, the starter model."""

from typing import Any

from engine.errors import ModelConfigError
from engine.model.config import ModelConfig, RopeScaling

ARCHITECTURES: tuple[str, ...] = ("LlamaForCausalLM",)

_MAX_LAYERS = 1000


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """Read both forms: `rope_theta` and `rope_scaling` beside each other (old), or within `rope_parameters` (new)."""
    hidden_size = _integer(hf, "hidden_size")
    num_heads = _integer(hf, "num_attention_heads")
    num_kv_heads = _integer(hf, "num_key_value_heads", default=num_heads)
    head_size = _integer(hf, "head_dim", default=hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ModelConfigError(
            f"config.json: num_attention_heads is {num_heads}; expected a multiple of num_key_value_heads, "
            f"got {num_kv_heads}; the file is damaged or of another architecture"
        )
    if head_size % 2:
        raise ModelConfigError(
            f"config.json: head size is {head_size}; expected an even number, as rotary embeddings turn pairs; "
            "the file is damaged or of another architecture"
        )
    if (activation := hf.get("hidden_act", "silu")) != "silu":
        raise ModelConfigError(
            f"config.json: hidden_act is {activation!r}; expected 'silu' for a Llama model; choose another model"
        )
    if hf.get("quantization_config"):
        raise ModelConfigError(
            "config.json has a quantization_config; expected plain weights; choose the model's unquantised checkpoint"
        )
    rope_theta, rope_scaling = _rope(hf)
    return ModelConfig(
        family="llama",
        vocab_size=_integer(hf, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(hf, "intermediate_size"),
        num_layers=_num_layers(hf),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        max_context=_integer(hf, "max_position_embeddings"),
        norm_eps=_number(hf, "rms_norm_eps", default=1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        has_tied_embeddings=_flag(hf, "tie_word_embeddings"),
        has_attention_bias=_flag(hf, "attention_bias"),
        has_mlp_bias=_flag(hf, "mlp_bias"),
        eos_token_ids=_token_ids(hf, "eos_token_id"),
    )


def tensor_names(config: ModelConfig) -> dict[tuple[str | int, ...], tuple[str, ...]]:
    """Map our parameters to Llama's tensor names. Matrices there are `[out, in]`, ours `[in, out]`."""
    names: dict[tuple[str | int, ...], tuple[str, ...]] = {
        ("embedding",): ("model.embed_tokens.weight",),
        ("norm", "scale"): ("model.norm.weight",),
    }
    if not config.has_tied_embeddings:
        names["head", "kernel"] = ("lm_head.weight",)
    for i in range(config.num_layers):
        hf, ours = f"model.layers.{i}", ("layers", i)
        packed = {
            "qkv": [f"{hf}.self_attn.{part}_proj" for part in "qkv"],
            "output": [f"{hf}.self_attn.o_proj"],
            "gate_up": [f"{hf}.mlp.gate_proj", f"{hf}.mlp.up_proj"],
            "down": [f"{hf}.mlp.down_proj"],
        }
        names[*ours, "attention_norm", "scale"] = (f"{hf}.input_layernorm.weight",)
        names[*ours, "mlp_norm", "scale"] = (f"{hf}.post_attention_layernorm.weight",)
        for matrix, parts in packed.items():
            names[*ours, matrix, "kernel"] = tuple(f"{part}.weight" for part in parts)
            is_attention = matrix in ("qkv", "output")
            if config.has_attention_bias if is_attention else config.has_mlp_bias:
                names[*ours, matrix, "bias"] = tuple(f"{part}.bias" for part in parts)
    return names


def _rope(hf: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    beside, within = hf.get("rope_scaling") or {}, hf.get("rope_parameters") or {}
    if not isinstance(beside, dict) or not isinstance(within, dict):
        raise ModelConfigError(
            f"config.json: RoPE scaling is {within or beside!r}; expected an object; download or copy the file again"
        )
    rope = {**beside, **within}
    theta = _number({"rope_theta": hf.get("rope_theta"), **rope}, "rope_theta", default=10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=_number(rope, "factor"))
    if kind == "llama3":
        return theta, RopeScaling(
            kind="llama3",
            factor=_number(rope, "factor"),
            low_freq_factor=_number(rope, "low_freq_factor"),
            high_freq_factor=_number(rope, "high_freq_factor"),
            original_max_position_embeddings=_integer(rope, "original_max_position_embeddings"),
        )
    raise ModelConfigError(
        f"config.json: RoPE scaling is {kind!r}; expected 'default', 'linear' or 'llama3'; choose another model"
    )


def _num_layers(hf: dict[str, Any]) -> int:
    """Refuse a number that only a damaged file has, before a module of that many layers is built."""
    num_layers = _integer(hf, "num_hidden_layers")
    if num_layers > _MAX_LAYERS:
        raise ModelConfigError(f"config.json: num_hidden_layers is {num_layers:,}; expected at most {_MAX_LAYERS:,}")
    return num_layers


def _integer(values: dict[str, Any], name: str, *, default: int | None = None) -> int:
    value = values.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelConfigError(
            f"config.json: {name} is {value!r}; expected a positive whole number; download or copy the file again"
        )
    return value


def _number(values: dict[str, Any], name: str, *, default: float | None = None) -> float:
    value = values.get(name)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelConfigError(
            f"config.json: {name} is {value!r}; expected a positive number; download or copy the file again"
        )
    return float(value)


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ModelConfigError(f"config.json: {name} is {value!r}; expected true or false; correct the file")
    return bool(value)


def _token_ids(values: dict[str, Any], name: str) -> tuple[int, ...]:
    """Read one id, a list of them, or null."""
    value = values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise ModelConfigError(
            f"config.json: {name} is {value!r}; expected a token id or a list of them; download or copy the file again"
        )
    return tuple(ids)
