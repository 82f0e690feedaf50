"""The heavy parts of a training step: matrix products, causal attention and the loss over the vocabulary.

Each has a gradient of its own, for two reasons. Products may take bfloat16 operands and still sum in float32: matrix
units then do the work (AMX on CPUs: four to six times the speed of float32), while everything between the products
stays in the precision of the activations. And XLA's CPU backend has fast bfloat16 products only for operands that lie
as they are used, with a result that does too: the gradients are arranged so that only small matrices are transposed.

Knows no model and no optimiser. Twins: `jnp.matmul`, `attend_causally`, and the loss by `logsumexp`.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

Residuals = tuple[Any, ...]


def has_fast_bfloat16() -> bool:
    """Whether products of bfloat16 are faster here than those of float32: any GPU, and CPUs with AMX."""
    if jax.default_backend() != "cpu":
        return True
    processor = Path("/proc/cpuinfo")
    return processor.exists() and "amx_bf16" in processor.read_text()


# --- products -------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [..., i] @ kernel [i, o]` from bfloat16 operands, in the precision of `x`."""
    return _multiply_forward(x, kernel)[0]


def _multiply_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Residuals]:
    rows, kernel16 = x.reshape(-1, x.shape[-1]).astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = _product(rows, kernel16, x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[1]), (rows, kernel16, jnp.zeros((), kernel.dtype))


def _multiply_backward(residuals: Residuals, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, kernel16, of_kernel = residuals
    gradient16 = gradient.reshape(-1, gradient.shape[-1]).astype(jnp.bfloat16)
    of_x = _product(gradient16, _transposed(kernel16), gradient.dtype)
    return of_x.reshape(*gradient.shape[:-1], -1), _product(_transposed(rows), gradient16, of_kernel.dtype)


multiply.defvjp(_multiply_forward, _multiply_backward)


# --- attention ------------------------------------------------------------------------------------------------------


def attend_causally_in_blocks(
    layer: int, q: jax.Array, k: jax.Array, v: jax.Array, *, block: int = 128, dtype: Any = jnp.float32
) -> jax.Array:
    """`attend_causally` without the upper triangle: each block of queries sees only the keys up to its own end.

    Keeps no scores for the gradient but computes them again, as FlashAttention does (Dao et al. 2022).
    """
    del layer
    batch, length, num_heads, size = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, size).transpose(0, 2, 3, 1, 4)
    by_head = [x.transpose(0, 2, 1, 3).reshape(-1, length, size) for x in (k, v)]
    attended = _attend(grouped.reshape(-1, *grouped.shape[2:]), *by_head, block, dtype)
    return attended.reshape(grouped.shape).transpose(0, 3, 1, 2, 4).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, block: int, dtype: Any) -> jax.Array:
    """`q [BK, G, T, H]`, `k [BK, T, H]`, `v [BK, T, H]` -> `[BK, G, T, H]`."""
    return _attend_forward(q, k, v, block, dtype)[0]


def _attend_forward(q: jax.Array, k: jax.Array, v: jax.Array, block: int, dtype: Any) -> tuple[jax.Array, Residuals]:
    batch, _, length, size = q.shape
    scaled, keys, values = (x.astype(dtype) for x in (q * size**-0.5, k, v))
    parts, norms = [], []
    for start in range(0, length, block):
        end = min(start + block, length)
        queries = scaled[:, :, start:end]
        scores = _product(queries.reshape(batch, -1, size), keys[:, :end].mT, jnp.float32)
        scores = scores.reshape(*queries.shape[:3], end)
        scores = jnp.where(jnp.arange(start, end)[:, None] >= jnp.arange(end), scores, -jnp.inf)
        norm = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - norm[..., None]).astype(dtype).reshape(batch, -1, end)
        parts.append(_product(weights, values[:, :end], q.dtype).reshape(queries.shape))
        norms.append(norm)
    attended = jnp.concatenate(parts, axis=2)
    return attended, (scaled, keys, values, attended, jnp.concatenate(norms, axis=2))


def _attend_backward(
    block: int, dtype: Any, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Scores are computed transposed, keys first: what is summed over queries then needs no transposition, and what is
    # summed over keys only that of the keys themselves.
    scaled, keys, values, attended, norms = residuals
    batch, _, length, size = scaled.shape
    share = jnp.sum(attended.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)
    gradient16, keys_transposed = gradient.astype(dtype), _transposed(keys)
    of_q, of_k, of_v = [], jnp.zeros(keys.shape, jnp.float32), jnp.zeros(keys.shape, jnp.float32)
    for start in range(0, length, block):
        end = min(start + block, length)
        place = slice(start, end)
        shape = (batch, end, scaled.shape[1], end - start)
        queries, of_attended = (x[:, :, place].reshape(batch, -1, size) for x in (scaled, gradient16))
        scores = _product(keys[:, :end], queries.mT, jnp.float32).reshape(shape)
        seen = jnp.arange(end)[:, None, None] <= jnp.arange(start, end)
        weights = jnp.where(seen, jnp.exp(scores - norms[:, None, :, place]), 0.0)
        of_weights = _product(values[:, :end], of_attended.mT, jnp.float32).reshape(shape)
        of_scores = (weights * (of_weights - share[:, None, :, place])).astype(dtype).reshape(batch, end, -1)
        of_v = of_v.at[:, :end].add(_product(weights.astype(dtype).reshape(batch, end, -1), of_attended, jnp.float32))
        of_k = of_k.at[:, :end].add(_product(of_scores, queries, jnp.float32))
        of_queries = _product(keys_transposed[:, :, :end], of_scores, jnp.float32)
        of_q.append(of_queries.mT.reshape(batch, -1, end - start, size))
    of_inputs = jnp.concatenate(of_q, axis=2) * size**-0.5, of_k, of_v
    return tuple(x.astype(gradient.dtype) for x in of_inputs)  # type: ignore[return-value]


_attend.defvjp(_attend_forward, _attend_backward)


# --- loss -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def target_losses(hidden: jax.Array, embedding: jax.Array, targets: jax.Array, dtype: Any) -> jax.Array:
    """Return the loss of each target `[M]`, nats, float32, from `hidden [M, D]` and the tied `embedding [V, D]`."""
    return _losses_forward(hidden, embedding, targets, dtype)[0]


def _losses_forward(
    hidden: jax.Array, embedding: jax.Array, targets: jax.Array, dtype: Any
) -> tuple[jax.Array, Residuals]:
    rows, columns = hidden.astype(dtype), embedding.astype(dtype)
    logits = _product(rows, columns.mT, jnp.float32)
    norms = jax.nn.logsumexp(logits, axis=-1)
    losses = norms - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return losses, (rows, columns, logits, norms, targets, jnp.zeros((), hidden.dtype))


def _losses_backward(dtype: Any, residuals: Residuals, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, columns, logits, norms, targets, of_hidden = residuals
    likelihoods = jnp.exp(logits - norms[:, None])
    is_target = jnp.arange(logits.shape[1]) == targets[:, None]
    of_logits = ((likelihoods - is_target) * gradient[:, None]).astype(dtype)
    of_embedding = _product(_transposed(rows), of_logits, of_hidden.dtype).T
    return _product(of_logits, columns, of_hidden.dtype), of_embedding, None


target_losses.defvjp(_losses_forward, _losses_backward)


def _product(left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    """Multiply matrices, batched or not; the barrier keeps layouts that readers of the result want out of it."""
    product: jax.Array = jax.lax.optimization_barrier(jnp.matmul(left, right, preferred_element_type=dtype))
    return product


def _transposed(x: jax.Array) -> jax.Array:
    """Swap the last two axes; on a CPU in memory too, where a product would otherwise take a slow path."""
    if jax.default_backend() != "cpu":
        return x.mT
    laid_out: jax.Array = with_layout_constraint(x.mT, Layout(major_to_minor=tuple(range(x.ndim))))
    return laid_out
