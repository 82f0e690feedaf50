"""Model facts, as read from a model directory. Says what a model *is*, never how it is deployed."""

from typing import Literal

import msgspec

Activation = Literal["silu", "gelu", "gelu_tanh"]


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
    norm: Literal["rms", "layer"] = "rms"
    """By root mean square, or by mean and variance with a bias."""
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    """Added to every norm's scale: some families store how far it is from 1."""
    activation: Activation = "silu"
    is_gated: bool = True
    """Whether the MLP is `down(activation(gate(x)) * up(x))` instead of `down(activation(up(x)))`."""
    embedding_scale: float = 1.0
    """What a token's embedding is multiplied by, though not where the same matrix scores the vocabulary."""
    windows: tuple[int | None, ...] = ()
    """Per layer, how many positions a token attends to, its own among them; None is all. Empty: all in every layer."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    has_tied_embeddings: bool = False
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    """Whether attention's last product has a bias."""
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    """Whether each head's query and key is normed before it is rotated."""
    eos_token_ids: tuple[int, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Parameters, each tied matrix counted once."""
        qkv_out = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
        up_out = self.intermediate_size * (2 if self.is_gated else 1)
        norm = self.hidden_size * (2 if self.norm == "layer" else 1)
        layer = self.hidden_size * qkv_out + self.num_heads * self.head_size * self.hidden_size
        layer += self.hidden_size * (up_out + self.intermediate_size) + 2 * norm
        layer += self.has_qkv_bias * qkv_out + self.has_output_bias * self.hidden_size
        layer += self.has_mlp_bias * (up_out + self.hidden_size) + self.has_qk_norm * 2 * self.head_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.has_tied_embeddings else 2)
        return self.num_layers * layer + embeddings + norm

    def window_of(self, layer: int) -> int | None:
        """Return how many positions a token attends to in this layer; None is all."""
        return self.windows[layer] if self.windows else None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one position takes over all layers, in float32."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_size * 4
