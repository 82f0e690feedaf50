"""The decoder-only transformer, written in Flax NNX.

The module computes; it holds no KV and chooses no attention kernel: the caller passes `attend`. Training passes
plain causal attention, serving passes one that writes to and reads from the resident KV. Serving splits the module
once at load and runs its leaves as plain arrays (`runner.py`).

Weights are `[in, out]`, Q, K and V in one matrix and gate and up in another: fewer, larger products. The rotary
embedding rotates halves, as Hugging Face's Llama does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from engine.model.config import ModelConfig

Attend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]
"""(layer, q [..., N, H], k [..., K, H], v [..., K, H]) -> [..., N, H]; q and k are already rotated."""


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Return the rotary frequencies `[H/2]`, radians per position, float64.

    Llama 3's scaling keeps short wavelengths, divides long ones by `factor` and blends between, as `transformers` does.
    """
    frequencies = config.rope_theta ** (-np.arange(0, config.head_size, 2, dtype=np.float64) / config.head_size)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * np.pi / frequencies
    longest_kept = scaling.original_max_position_embeddings / scaling.high_freq_factor
    shortest_divided = scaling.original_max_position_embeddings / scaling.low_freq_factor
    smooth = (scaling.original_max_position_embeddings / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = np.where(wavelengths > shortest_divided, frequencies / scaling.factor, blended)
    return np.where(wavelengths < longest_kept, frequencies, scaled)


def rope_table(config: ModelConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines `[length, H/2]` of every position, float32."""
    angles = np.arange(length)[:, None] * rope_frequencies(config)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
    x: Float[Array, "*T n H"], cos: Float[Array, "*T 1 h"], sin: Float[Array, "*T 1 h"]
) -> Float[Array, "*T n H"]:
    """Rotate each pair (i, i + H/2) of the last axis."""
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, eps: float, *, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...]


class Linear(nnx.Module):
    """`x @ kernel (+ bias)`, kernel `[in, out]`."""

    multiply: Callable[[jax.Array, jax.Array], jax.Array] = staticmethod(jnp.matmul)
    """Training exchanges it on an instance, for products of lower precision (`engine/training/products.py`)."""

    def __init__(
        self, size_in: int, size_out: int, *, std: float, has_bias: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (size_in, size_out), dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if has_bias else None

    def __call__(self, x: Float[Array, "*T i"]) -> Float[Array, "*T o"]:
        y = self.multiply(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


class Layer(nnx.Module):
    """One pre-norm block: attention, then a gated MLP."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        c = config
        std = c.hidden_size**-0.5
        out_std = std / (2 * c.num_layers) ** 0.5
        qkv_out = (c.num_heads + 2 * c.num_kv_heads) * c.head_size
        attention_out = c.num_heads * c.head_size
        self.attention_norm = RMSNorm(c.hidden_size, c.norm_eps, dtype=dtype)
        self.qkv = Linear(c.hidden_size, qkv_out, std=std, has_bias=c.has_attention_bias, dtype=dtype, rngs=rngs)
        self.output = Linear(
            attention_out, c.hidden_size, std=out_std, has_bias=c.has_attention_bias, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = RMSNorm(c.hidden_size, c.norm_eps, dtype=dtype)
        self.gate_up = Linear(
            c.hidden_size, 2 * c.intermediate_size, std=std, has_bias=c.has_mlp_bias, dtype=dtype, rngs=rngs
        )
        self.down = Linear(
            c.intermediate_size, c.hidden_size, std=out_std, has_bias=c.has_mlp_bias, dtype=dtype, rngs=rngs
        )
        self.heads = (c.num_heads, c.num_kv_heads, c.head_size)

    def __call__(
        self,
        x: Float[Array, "*T D"],
        index: int,
        cos: Float[Array, "*T 1 h"],
        sin: Float[Array, "*T 1 h"],
        attend: Attend,
    ) -> Float[Array, "*T D"]:
        num_heads, num_kv_heads, head_size = self.heads
        qkv = self.qkv(self.attention_norm(x))
        qkv = qkv.reshape(*qkv.shape[:-1], num_heads + 2 * num_kv_heads, head_size)
        # One rotation for Q and K together: they are neighbours in the packed product.
        qk = rotate(qkv[..., : num_heads + num_kv_heads, :], cos, sin)
        q, k = qk[..., :num_heads, :], qk[..., num_heads:, :]
        v = qkv[..., num_heads + num_kv_heads :, :]
        attended = attend(index, q, k, v)
        x = x + self.output(attended.reshape(*x.shape[:-1], num_heads * head_size))
        gate, up = jnp.split(self.gate_up(self.mlp_norm(x)), 2, axis=-1)
        return x + self.down(jax.nn.silu(gate) * up)


class Transformer(nnx.Module):
    """Tokens and positions in, last hidden states out; `logits` turns those into scores over the vocabulary."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        std = config.hidden_size**-0.5
        self.embedding = nnx.Param(
            std * jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size), dtype)
        )
        self.layers = nnx.List([Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        self.head = (
            None
            if config.has_tied_embeddings
            else Linear(config.hidden_size, config.vocab_size, std=std, has_bias=False, dtype=dtype, rngs=rngs)
        )

    def __call__(
        self,
        tokens: Int[Array, "*T"],
        positions: Int[Array, "*T"],
        attend: Attend,
        *,
        rope: tuple[Float[Array, "S h"], Float[Array, "S h"]] | None = None,
    ) -> Float[Array, "*T D"]:
        """Return the normed hidden states of every token.

        `rope` is `rope_table` for all positions that may occur; without it the angles are computed here, which is
        right for training but slow for serving: XLA computes them again for every head of every layer.
        """
        if rope is None:
            angles = positions[..., None].astype(jnp.float32) * jnp.asarray(rope_frequencies(self.config), jnp.float32)
            cos, sin = jnp.cos(angles), jnp.sin(angles)
        else:
            cos, sin = rope[0][positions], rope[1][positions]
        x = self.embedding[...][tokens]
        cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, cos, sin, attend)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """Return float32 scores over the vocabulary."""
        if self.head is None:
            return jnp.einsum("...d,vd->...v", hidden, self.embedding[...], preferred_element_type=jnp.float32)
        return jnp.einsum("...d,dv->...v", hidden, self.head.kernel[...], preferred_element_type=jnp.float32)


def attend_causally(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Plain causal attention within `[B, T]` examples: training's attention and the oracle of every other one."""
    del layer
    batch, length, num_heads, head_size = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_size)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * head_size**-0.5
    mask = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(batch, length, num_heads, head_size)
