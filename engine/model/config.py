"""Model facts, as read from a model directory. Says what a model *is*, never how it is deployed."""

from typing import Literal

import msgspec


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How rotary frequencies are stretched for contexts longer than the model was first trained on."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a decoder-only transformer. Letters in brackets are the dimension letters of the whole repository."""

    family: str
    """Name of the family in `families/` that read this config."""
    vocab_size: int
    """[V]"""
    hidden_size: int
    """[D]"""
    intermediate_size: int
    """[F]"""
    num_layers: int
    """[L]"""
    num_heads: int
    """[N]"""
    num_kv_heads: int
    """[K]"""
    head_size: int
    """[H]"""
    max_context: int
    """Most tokens, prompt and completion together, that the model was made for."""
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    has_tied_embeddings: bool = False
    has_attention_bias: bool = False
    has_mlp_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Parameters, each tied matrix counted once."""
        qkv_out = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
        layer = self.hidden_size * qkv_out + self.num_heads * self.head_size * self.hidden_size
        layer += 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        if self.has_attention_bias:
            layer += qkv_out + self.hidden_size
        if self.has_mlp_bias:
            layer += 2 * self.intermediate_size + self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.has_tied_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one position takes over all layers, in float32."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_size * 4
