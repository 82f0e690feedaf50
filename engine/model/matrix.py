"""Matrices of weights, each in the form in which its products are fast, and the products themselves.

A leaf of the weights is a plain array, `[I, O]` as a kernel or `[V, D]` as a table of embeddings, or one of the forms
here; the model calls `multiply`, `embed` and `score` and does not know which. A form is chosen once, when weights are
loaded (`hold`); how many rows a product has is static where it is traced, so nothing else has to choose. Of every
matrix one form alone is kept.

| form | weights | product |
|---|---|---|
| plain array | any float | XLA: training, GPUs, and wherever nothing else is chosen; the oracle |
| `Panels` | float32 | `native/linear.c`; a row's numbers do not depend on the rows beside it |
| `Int8` | int8, a float32 scale per output | XLA; rows quantised too ("w8a8", on CPUs) or weights widened (GPUs) |
| `Int8Panels` | the same | `native/linear.c`, rows quantised |
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from engine import native

PANEL = 64
"""Outputs per panel, as in `native/linear.c`."""

_LARGEST = 127
_SMALLEST = 1e-30
"""A row smaller than this is taken for zeros: 127 divided by it might be infinite."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Panels:
    """float32 weights as the native product reads them; outputs are padded with zeros to whole panels."""

    values: jax.Array
    """`[ceil(O/64), I, 64]`"""
    num_outputs: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """int8 weights, symmetric per output: `W[i, o] = values[o, i] * scales[o]`."""

    values: jax.Array
    """`[O, I]`: XLA's CPU backend is fast only in this order."""
    scales: jax.Array
    """`[O]` float32"""
    rows: Literal["int8", "float"] = field(metadata={"static": True})
    """Whether rows are quantised for the product, or weights widened to the rows' type."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Panels:
    """int8 weights as the native product reads them; inputs are padded to fours, outputs to whole panels."""

    values: jax.Array
    """`[ceil(O/64), ceil(I/4), 64, 4]`"""
    scales: jax.Array
    """`[ceil(O/64) * 64]` float32"""
    sums: jax.Array
    """`[ceil(O/64) * 64]` int32: the sum of each output's bytes."""
    num_inputs: int = field(metadata={"static": True})
    num_outputs: int = field(metadata={"static": True})


Matrix = jax.Array | Panels | Int8 | Int8Panels
Form = Literal["plain", "panels", "int8", "int8 panels", "int8 weights"]
"""`int8 weights`: an `Int8` whose rows stay floats."""


def hold(weights: jax.Array, form: Form, *, is_table: bool = False) -> Matrix:
    """Return weights `[I, O]`, or a table `[V, D]` (inputs D, outputs V), in a form; the caller drops the original."""
    return weights if form == "plain" else _HOLD[form](weights, is_table)


@partial(jax.jit, static_argnums=1)
def _as_panels(weights: jax.Array, is_table: bool) -> Panels:
    by_output = (weights if is_table else weights.T).astype(jnp.float32)
    num_outputs, num_inputs = by_output.shape
    padded = jnp.pad(by_output, ((0, -num_outputs % PANEL), (0, 0)))
    return Panels(padded.reshape(-1, PANEL, num_inputs).transpose(0, 2, 1), num_outputs)


@partial(jax.jit, static_argnums=(1, 2))
def _as_int8(weights: jax.Array, is_table: bool, rows: Literal["int8", "float"] = "int8") -> Int8:
    return Int8(*quantise_rows(weights if is_table else weights.T), rows)


@partial(jax.jit, static_argnums=1)
def _as_int8_panels(weights: jax.Array, is_table: bool) -> Int8Panels:
    values, scales = quantise_rows(weights if is_table else weights.T)
    num_outputs, num_inputs = values.shape
    padded = jnp.pad(values, ((0, -num_outputs % PANEL), (0, -num_inputs % 4)))
    panels = padded.reshape(-1, PANEL, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    sums = jnp.sum(padded, axis=1, dtype=jnp.int32)
    return Int8Panels(panels, jnp.pad(scales, (0, -num_outputs % PANEL)), sums, num_inputs, num_outputs)


_HOLD: dict[Form, Callable[[jax.Array, bool], Matrix]] = {
    "panels": _as_panels,
    "int8": _as_int8,
    "int8 weights": partial(_as_int8, rows="float"),
    "int8 panels": _as_int8_panels,
}


def quantise_rows(x: Float[Array, "R I"]) -> tuple[Int[Array, "R I"], Float[Array, "R"]]:
    """Return the int8 values and float32 scales of rows, each by its own largest value.

    A row that is not finite throughout has the scale NaN, and a row of zeros has values 0.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=1)
    is_usable = jnp.isfinite(largest) & (largest >= _SMALLEST)
    inverse = jnp.where(is_usable, _LARGEST / jnp.where(is_usable, largest, 1), 0)
    values = jnp.where(is_usable[:, None], jnp.round(x * inverse[:, None]), 0).astype(jnp.int8)
    return values, jnp.where(jnp.isfinite(largest), largest / _LARGEST, jnp.nan)


def multiply(
    x: Float[Array, "*T I"], matrix: Matrix, bias: jax.Array | None = None, *, dtype: jnp.dtype | None = None
) -> Float[Array, "*T O"]:
    """Return `x W (+ bias)` in `dtype`, which is `x`'s unless given; a plain matrix is `[I, O]`."""
    if isinstance(matrix, jax.Array):
        y = jnp.matmul(x, matrix, preferred_element_type=dtype)
        return y if bias is None else y + bias
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(matrix, Panels):
        y = _panels_product(rows, matrix, bias)
    elif isinstance(matrix, Int8Panels):
        y = _int8_panels_product(rows, matrix, bias)
    else:
        y = _int8_product(rows, matrix, bias)
    return y.astype(dtype or x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def embed(table: Matrix, tokens: Int[Array, "*T"], *, dtype: jnp.dtype) -> Float[Array, "*T D"]:
    """Return the rows of a table of embeddings; `dtype` is for forms that have none of their own."""
    if isinstance(table, jax.Array):
        return table[tokens]
    if isinstance(table, Panels):
        return table.values[tokens // PANEL, :, tokens % PANEL].astype(dtype)
    if isinstance(table, Int8):
        values = table.values[tokens]
    else:
        fours = table.values[tokens // PANEL, :, tokens % PANEL]
        values = fours.reshape(*tokens.shape, -1)[..., : table.num_inputs]
    return (values.astype(jnp.float32) * table.scales[tokens][..., None]).astype(dtype)


def score(x: Float[Array, "*T D"], table: Matrix) -> Float[Array, "*T V"]:
    """Return the float32 products of `x` with every row of a table of embeddings."""
    if isinstance(table, jax.Array):
        return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
    return multiply(x, table, dtype=jnp.dtype(jnp.float32))


def _panels_product(x: jax.Array, matrix: Panels, bias: jax.Array | None) -> jax.Array:
    result = jax.ShapeDtypeStruct((x.shape[0], matrix.num_outputs), jnp.float32)
    call = jax.ffi.ffi_call(native.PRODUCT, result, vmap_method="sequential")
    return call(x.astype(jnp.float32), matrix.values, *_floats(bias))


def _int8_panels_product(x: jax.Array, matrix: Int8Panels, bias: jax.Array | None) -> jax.Array:
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -matrix.num_inputs % 4)))
    results = [
        jax.ShapeDtypeStruct((x.shape[0], matrix.num_outputs), jnp.float32),
        jax.ShapeDtypeStruct(x.shape, jnp.uint8),
        jax.ShapeDtypeStruct(x.shape[:1], jnp.float32),
    ]
    call = jax.ffi.ffi_call(native.INT8_PRODUCT, results, vmap_method="sequential")
    y, *_ = call(x, matrix.values, matrix.scales, matrix.sums, *_floats(bias))
    return y


def _int8_product(x: jax.Array, matrix: Int8, bias: jax.Array | None) -> jax.Array:
    contract_last = (((1,), (1,)), ((), ()))
    if matrix.rows == "float":
        wide = matrix.values.astype(x.dtype)
        sums = jax.lax.dot_general(x, wide, contract_last, preferred_element_type=jnp.float32)
        y = sums * matrix.scales
    else:
        num_rows = x.shape[0]
        values, scales = quantise_rows(x)
        if num_rows == 1:  # XLA's CPU backend multiplies a single row of bytes one by one
            values = jnp.pad(values, ((0, 1), (0, 0)))
        exact = jax.lax.dot_general(values, matrix.values, contract_last, preferred_element_type=jnp.int32)
        y = exact[:num_rows].astype(jnp.float32) * matrix.scales * scales[:, None]
    return y if bias is None else y + bias


def _floats(bias: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if bias is None else (bias.astype(jnp.float32),)
