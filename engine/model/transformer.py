"""The decoder-only transformer, written in Flax NNX.

The module computes; it holds no KV and chooses no attention kernel: the caller passes `attend`. Training passes
plain causal attention, serving passes one that writes to and reads from the resident KV. Serving splits the module
once at load and runs its leaves as plain arrays (`runner.py`).

Weights are `[in, out]`, Q, K and V in one matrix and gate and up in another: fewer, larger products. The rotary
embedding rotates halves, as Hugging Face's Llama does. What differs between families is a fact of `ModelConfig`, not a
class of its own.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from engine.model.config import Activation, ModelConfig
from engine.model.matrix import embed, multiply, score

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


class Norm(nnx.Module):
    """Root-mean-square or layer norm over the last axis, computed in float32."""

    def __init__(self, config: ModelConfig, size: int, *, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.full((size,), 1 - config.norm_offset, dtype))
        self.bias = nnx.Param(jnp.zeros((size,), dtype)) if config.norm == "layer" else None
        self.eps, self.offset = config.norm_eps, config.norm_offset

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        x32 = x.astype(jnp.float32)
        if self.bias is not None:
            x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        if self.bias is not None:
            return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)
        if self.offset:  # before rounding: the sum has fewer digits than the scale
            return (normed * (self.scale[...].astype(jnp.float32) + self.offset)).astype(x.dtype)
        return normed.astype(x.dtype) * self.scale[...]


class Linear(nnx.Module):
    """`x @ kernel (+ bias)`; the kernel is `[in, out]`, or one of the forms of `matrix.py`."""

    multiply: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """Training sets it on an instance, for products of lower precision (`engine/training/products.py`)."""

    def __init__(
        self, size_in: int, size_out: int, *, std: float, has_bias: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (size_in, size_out), dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if has_bias else None

    def __call__(self, x: Float[Array, "*T i"]) -> Float[Array, "*T o"]:
        if self.multiply is not None:
            y = self.multiply(x, self.kernel.get_value())
            return y if self.bias is None else y + self.bias[...]
        return multiply(x, self.kernel.get_value(), None if self.bias is None else self.bias[...])


_ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Layer(nnx.Module):
    """One pre-norm block: attention, then an MLP."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        c = config
        std = c.hidden_size**-0.5
        out_std = std / (2 * c.num_layers) ** 0.5
        qkv_out = (c.num_heads + 2 * c.num_kv_heads) * c.head_size
        attention_out = c.num_heads * c.head_size
        self.attention_norm = Norm(c, c.hidden_size, dtype=dtype)
        self.qkv = Linear(c.hidden_size, qkv_out, std=std, has_bias=c.has_qkv_bias, dtype=dtype, rngs=rngs)
        self.q_norm = Norm(c, c.head_size, dtype=dtype) if c.has_qk_norm else None
        self.k_norm = Norm(c, c.head_size, dtype=dtype) if c.has_qk_norm else None
        self.output = Linear(
            attention_out, c.hidden_size, std=out_std, has_bias=c.has_output_bias, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = Norm(c, c.hidden_size, dtype=dtype)
        up_out = c.intermediate_size * (2 if c.is_gated else 1)
        up = Linear(c.hidden_size, up_out, std=std, has_bias=c.has_mlp_bias, dtype=dtype, rngs=rngs)
        self.gate_up = up if c.is_gated else None
        self.up = None if c.is_gated else up
        self.down = Linear(
            c.intermediate_size, c.hidden_size, std=out_std, has_bias=c.has_mlp_bias, dtype=dtype, rngs=rngs
        )
        self.heads = (c.num_heads, c.num_kv_heads, c.head_size)
        self.activation = c.activation

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
        qk = qkv[..., : num_heads + num_kv_heads, :]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk[..., :num_heads, :], qk[..., num_heads:, :]
            qk = jnp.concatenate([self.q_norm(q), self.k_norm(k)], axis=-2)
        # One rotation for Q and K together: they are neighbours in the packed product.
        qk = rotate(qk, cos, sin)
        q, k = qk[..., :num_heads, :], qk[..., num_heads:, :]
        v = qkv[..., num_heads + num_kv_heads :, :]
        attended = attend(index, q, k, v)
        x = x + self.output(attended.reshape(*x.shape[:-1], num_heads * head_size))
        return x + self.down(self._activated(self.mlp_norm(x)))

    def _activated(self, x: Float[Array, "*T D"]) -> Float[Array, "*T F"]:
        activate = _ACTIVATIONS[self.activation]
        if self.up is not None:
            return activate(self.up(x))
        assert self.gate_up is not None
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return activate(gate) * up


class Transformer(nnx.Module):
    """Tokens and positions in, last hidden states out; `logits` turns those into scores over the vocabulary."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        std = config.hidden_size**-0.5
        self.embedding = nnx.Param(
            std * jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size), dtype)
        )
        self.layers = nnx.List([Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = Norm(config, config.hidden_size, dtype=dtype)
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
        x = embed(self.embedding.get_value(), tokens, dtype=self.norm.scale[...].dtype)
        if self.config.embedding_scale != 1:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, cos, sin, attend)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """Return float32 scores over the vocabulary."""
        if self.head is None:
            return score(hidden, self.embedding.get_value())
        return multiply(hidden, self.head.kernel.get_value(), dtype=jnp.dtype(jnp.float32))


def attend_causally(
    layer: int, q: jax.Array, k: jax.Array, v: jax.Array, *, windows: tuple[int | None, ...] = ()
) -> jax.Array:
    """Plain causal attention within `[B, T]` examples: training's attention and the oracle of every other one.

    `windows` is `ModelConfig.windows`.
    """
    batch, length, num_heads, head_size = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_size)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * head_size**-0.5
    mask = jnp.tril(jnp.ones((length, length), bool))
    if windows and (window := windows[layer]) is not None:
        mask = jnp.triu(mask, 1 - window)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(batch, length, num_heads, head_size)
