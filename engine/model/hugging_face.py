"""What the families share in reading Hugging Face's `config.json`, and in naming its tensors.

Nearly every decoder-only architecture has Llama's fields and Llama's tensor names; a family reads those here and says
what is different. Knows no family.
"""

from typing import Any

from engine.errors import ModelConfigError
from engine.model.config import Activation, ModelConfig, RopeScaling

TensorNames = dict[tuple[str | int, ...], tuple[str, ...]]
"""Each parameter's path to the tensors that make it, in the order they are packed."""

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_MAX_LAYERS = 1000


def read_decoder(
    hf: dict[str, Any],
    *,
    family: str,
    head_size: int | None = None,
    activation: str = "silu",
    has_tied_embeddings: bool = False,
) -> ModelConfig:
    """Read the fields that all families have; raises ModelConfigError.

    `head_size`, `activation` and `has_tied_embeddings` are the architecture's own defaults. Both forms are read:
    `rope_theta` and `rope_scaling` beside each other (old), or within `rope_parameters` (new).
    """
    hidden_size = integer(hf, "hidden_size")
    num_heads = integer(hf, "num_attention_heads")
    num_kv_heads = integer(hf, "num_key_value_heads", default=num_heads)
    head_size = integer(hf, "head_dim", default=head_size or hidden_size // num_heads)
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
    if hf.get("quantization_config"):
        raise ModelConfigError(
            "config.json has a quantization_config; expected plain weights; choose the model's unquantised checkpoint"
        )
    rope_theta, rope_scaling = _rope(hf)
    return ModelConfig(
        family=family,
        vocab_size=integer(hf, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer(hf, "intermediate_size"),
        num_layers=_num_layers(hf),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        max_context=integer(hf, "max_position_embeddings"),
        norm_eps=number(hf, "rms_norm_eps", default=1e-6),
        activation=read_activation(hf, "hidden_act", default=activation),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        has_tied_embeddings=flag(hf, "tie_word_embeddings", default=has_tied_embeddings),
        eos_token_ids=_token_ids(hf, "eos_token_id"),
    )


def name_tensors(
    config: ModelConfig, *, up: str = "up_proj", down: str = "down_proj", gate: str = "gate_proj"
) -> TensorNames:
    """Map our parameters to Llama's tensor names. Matrices there are `[out, in]`, ours `[in, out]`."""
    norm_parts = {"scale": "weight"} | ({"bias": "bias"} if config.norm == "layer" else {})
    names: TensorNames = {("embedding",): ("model.embed_tokens.weight",)}
    for part, suffix in norm_parts.items():
        names["norm", part] = (f"model.norm.{suffix}",)
    if not config.has_tied_embeddings:
        names["head", "kernel"] = ("lm_head.weight",)
    up_name, ups = ("gate_up", (gate, up)) if config.is_gated else ("up", (up,))
    for i in range(config.num_layers):
        hf, ours = f"model.layers.{i}", ("layers", i)
        matrices = {
            "qkv": ([f"{hf}.self_attn.{part}_proj" for part in "qkv"], config.has_qkv_bias),
            "output": ([f"{hf}.self_attn.o_proj"], config.has_output_bias),
            up_name: ([f"{hf}.mlp.{part}" for part in ups], config.has_mlp_bias),
            "down": ([f"{hf}.mlp.{down}"], config.has_mlp_bias),
        }
        for part, suffix in norm_parts.items():
            names[*ours, "attention_norm", part] = (f"{hf}.input_layernorm.{suffix}",)
            names[*ours, "mlp_norm", part] = (f"{hf}.post_attention_layernorm.{suffix}",)
        if config.has_qk_norm:
            names[*ours, "q_norm", "scale"] = (f"{hf}.self_attn.q_norm.weight",)
            names[*ours, "k_norm", "scale"] = (f"{hf}.self_attn.k_norm.weight",)
        for matrix, (parts, has_bias) in matrices.items():
            names[*ours, matrix, "kernel"] = tuple(f"{part}.weight" for part in parts)
            if has_bias:
                names[*ours, matrix, "bias"] = tuple(f"{part}.bias" for part in parts)
    return names


def read_windows(hf: dict[str, Any], config: ModelConfig, *, first_layer: int = 0) -> tuple[int | None, ...]:
    """Return `ModelConfig.windows` from `sliding_window` and, where there are any, `layer_types`.

    Without `layer_types` every layer from `first_layer` on has the window. One that the context never exceeds is none.
    """
    if hf.get("sliding_window") is None:
        return ()
    window = integer(hf, "sliding_window")
    types = hf.get("layer_types")
    if types is None:
        types = ["full_attention"] * first_layer + ["sliding_attention"] * (config.num_layers - first_layer)
        types = types[: config.num_layers]
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != config.num_layers or not all(kind in known for kind in types):
        raise ModelConfigError(
            f"config.json: layer_types is {types!r}; expected {config.num_layers} of {', '.join(map(repr, known))}, "
            "one per layer; choose another model"
        )
    if window >= config.max_context or "sliding_attention" not in types:
        return ()
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def read_activation(hf: dict[str, Any], name: str, *, default: str) -> Activation:
    """Read an activation by the name that transformers gives it."""
    value = hf.get(name)
    value = default if value is None else value
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise ModelConfigError(
            f"config.json: {name} is {value!r}; expected one of: {', '.join(_ACTIVATIONS)}; choose another model"
        )
    return _ACTIVATIONS[value]


def integer(values: dict[str, Any], name: str, *, default: int | None = None) -> int:
    """Read a positive whole number; null is left out, and left out without a default is an error."""
    value = values.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelConfigError(
            f"config.json: {name} is {value!r}; expected a positive whole number; download or copy the file again"
        )
    return value


def number(values: dict[str, Any], name: str, *, default: float | None = None) -> float:
    """Read a positive, finite number."""
    value = values.get(name)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelConfigError(
            f"config.json: {name} is {value!r}; expected a positive number; download or copy the file again"
        )
    return float(value)


def flag(values: dict[str, Any], name: str, *, default: bool = False) -> bool:
    """Read true or false."""
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ModelConfigError(f"config.json: {name} is {value!r}; expected true or false; correct the file")
    return default if value is None else value


def _rope(hf: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    beside, within = hf.get("rope_scaling") or {}, hf.get("rope_parameters") or {}
    if not isinstance(beside, dict) or not isinstance(within, dict):
        raise ModelConfigError(
            f"config.json: RoPE scaling is {within or beside!r}; expected an object; download or copy the file again"
        )
    rope = {**beside, **within}
    theta = number({"rope_theta": hf.get("rope_theta"), **rope}, "rope_theta", default=10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=number(rope, "factor"))
    if kind == "llama3":
        return theta, RopeScaling(
            kind="llama3",
            factor=number(rope, "factor"),
            low_freq_factor=number(rope, "low_freq_factor"),
            high_freq_factor=number(rope, "high_freq_factor"),
            original_max_position_embeddings=integer(rope, "original_max_position_embeddings"),
        )
    raise ModelConfigError(
        f"config.json: RoPE scaling is {kind!r}; expected 'default', 'linear' or 'llama3'; choose another model"
    )


def _num_layers(hf: dict[str, Any]) -> int:
    """Refuse a number that only a damaged file has, before a module of that many layers is built."""
    num_layers = integer(hf, "num_hidden_layers")
    if num_layers > _MAX_LAYERS:
        raise ModelConfigError(f"config.json: num_hidden_layers is {num_layers:,}; expected at most {_MAX_LAYERS:,}")
    return num_layers


def _token_ids(values: dict[str, Any], name: str) -> tuple[int, ...]:
    """Read one id, a list of them, or null."""
    value = values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise ModelConfigError(
            f"config.json: {name} is {value!r}; expected a token id or a list of them; download or copy the file again"
        )
    return tuple(ids)
