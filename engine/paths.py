"""Which code computes what: attention and the products with the weights, on this machine, for this model.

Decided once, before weights are loaded, by what was asked for, by what can be built, and by the verdicts of
`self_test.py`: a path must compute the right numbers, and unless it was asked for by name it must not be clearly slower
than XLA's. Every path that is left is left with a reason in the log.
"""

import logging
import subprocess
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from engine import native, self_test
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.model.attention import Attention, native_attention, portable_attention
from engine.model.block_sparse import (
    SparseAttention,
    native_sparse_attention,
    xla_sparse_attention,
)
from engine.model.block_sparse import self_test as sparse_difference
from engine.model.config import ModelConfig
from engine.model.matrix import Form, Matrix, hold
from engine.plan import EnginePlan
from engine.speed_test import race_sparse_attention
from engine.weights.parameters import ParameterPath

logger = logging.getLogger(__name__)

_VENDOR_LIMIT = 3e-2
"""bfloat16 has 8 bits: outputs of about 1 may differ by as much."""


class Paths(NamedTuple):
    """What was chosen."""

    attention_name: str
    attention: Attention
    sparse_attention: SparseAttention | None
    """What computes chunks of prompts that may be sparse; None where none ever is."""
    form: Form
    """In which form matrices of weights are kept, and so what computes their products."""
    lookup_form: Form
    """The same of a table of embeddings that is only looked up; one that scores the vocabulary too has `form`."""
    has_tied_embeddings: bool
    compiler_options: self_test.CompilerOptions
    """What programs are to be compiled with."""

    def hold(self, path: ParameterPath, parameter: jax.Array) -> Matrix:
        """Return a parameter in the form chosen for it."""
        if path[-1] == "embedding":
            return hold(parameter, self.form if self.has_tied_embeddings else self.lookup_form, is_table=True)
        return hold(parameter, self.form) if path[-1] == "kernel" else parameter


def choose_paths(config: EngineConfig, model: ModelConfig, plan: EnginePlan, *, directory: Path) -> Paths:
    """Choose; build and check what has to be, keeping kernels and verdicts in `directory`.

    Raises ConfigError if a path was asked for by name and cannot be had.
    """
    is_cpu = jax.default_backend() == "cpu"
    is_int8 = config.weights == "int8"
    native_form: Form = "int8 panels" if is_int8 else "panels"
    xla_form: Form = "plain" if not is_int8 else "int8" if is_cpu else "int8 weights"
    sizes = self_test.Sizes(head_size=model.head_size, matrices=_matrices(model))
    problems = _why_not_native(config, model, plan, native_form=native_form, sizes=sizes, directory=directory)
    for name, wanted, problem in (
        ("attention", config.attention, problems["attention"]),
        ("products", config.products, problems[native_form]),
    ):
        if problem and wanted == "native":
            raise ConfigError(f"native {name} cannot be used: {problem}; choose engine.{name} = 'auto' or 'xla'")
        if problem and wanted == "auto" and is_cpu:
            logger.warning("%s on XLA: %s", name, problem)
    form, options = native_form, self_test.CompilerOptions()
    if problems[native_form] or problems["attention"]:
        xla_form, options = _trusted_xla(xla_form, sizes, directory) if is_cpu else (xla_form, {})
        form = xla_form if problems[native_form] else native_form
    attention = portable_attention if problems["attention"] else native_attention
    return Paths(
        attention_name="xla" if problems["attention"] else "native",
        attention=attention,
        sparse_attention=_sparse_attention(plan, model, attention),
        form=form,
        lookup_form="plain" if not is_int8 else xla_form,
        has_tied_embeddings=model.has_tied_embeddings,
        compiler_options=options,
    )


def _sparse_attention(plan: EnginePlan, model: ModelConfig, dense: Attention) -> SparseAttention | None:
    """Choose, beside `dense` attention; on a GPU the vendor's kernel if its numbers are right."""
    if plan.sparse_problem is not None:
        return None
    if dense is native_attention:
        return native_sparse_attention
    path = partial(xla_sparse_attention, dense=dense)
    if jax.default_backend() != "gpu":
        return path
    vendor = partial(path, implementation="cudnn")
    try:
        difference = sparse_difference(vendor, head_size=model.head_size, dtype=plan.dtype)
        problem = (
            race_sparse_attention(vendor, path, head_size=model.head_size, dtype=plan.dtype)
            if difference < _VENDOR_LIMIT
            else f"it differs from the reference by {difference:.2e}"
        )
    except Exception as error:  # whatever a vendor's library makes of shapes it has no kernel for
        problem = str(error)
    if problem:
        logger.warning("block-sparse attention by XLA alone: cuDNN's is left, %s", problem[:300])
    return path if problem else vendor


def _matrices(model: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Return (I, O) of every kind of matrix of a model, the table of embeddings last."""
    qkv = (model.num_heads + 2 * model.num_kv_heads) * model.head_size
    return (
        (model.hidden_size, qkv),
        (model.num_heads * model.head_size, model.hidden_size),
        (model.hidden_size, model.intermediate_size * (2 if model.is_gated else 1)),
        (model.intermediate_size, model.hidden_size),
        (model.hidden_size, model.vocab_size),
    )


def _why_not_native(
    config: EngineConfig,
    model: ModelConfig,
    plan: EnginePlan,
    *,
    native_form: Form,
    sizes: self_test.Sizes,
    directory: Path,
) -> dict[str, str | None]:
    """Return for attention and for products None, or why the native path is not used."""
    asked = {"attention": config.attention, native_form: config.products}
    problems = {path: _why_not_tried(path, choice, model, plan) for path, choice in asked.items()}
    candidates = tuple(path for path, problem in problems.items() if problem is None)
    if not candidates:
        return problems
    try:
        library = native.build(directory)
        # Processes of one mesh must choose alike, so there only numbers decide.
        raced = [path for path in candidates if asked[path] == "auto" and jax.process_count() == 1]
        checks = (*candidates, *(f"{path} speed" for path in raced))
        found = self_test.verdicts(checks, sizes, library=library, directory=directory)
        problems |= {path: found[path] or found.get(f"{path} speed") for path in candidates}
        if not all(problems[path] for path in candidates):
            native.register(library)
    except (OSError, subprocess.SubprocessError) as error:
        return problems | dict.fromkeys(candidates, f"the kernels in engine/native could not be built ({error})")
    return problems


def _why_not_tried(path: str, asked: str, model: ModelConfig, plan: EnginePlan) -> str | None:
    if asked == "xla":
        return "XLA was asked for"
    if jax.default_backend() != "cpu":
        return f"it is made for CPUs and this is {jax.default_backend()}"
    if path == "attention" and (plan.dtype != "float32" or model.head_size % 16):
        return f"it needs float32 and a head size that is a multiple of 16, got {plan.dtype} and {model.head_size}"
    if path == "panels" and plan.dtype != "float32":
        return f"it needs float32 or int8 weights, got {plan.dtype}"
    return None


def _trusted_xla(form: Form, sizes: self_test.Sizes, directory: Path) -> tuple[Form, self_test.CompilerOptions]:
    """Return the form and the compiler options with which XLA computes the right numbers."""
    checks = ("xla", "xla int8") if form == "int8" else ("xla",)
    problems = self_test.verdicts(checks, sizes, library=None, directory=directory)
    if not any(problems.values()):
        return form, {}
    unfused = tuple(f"{check} without fusions" for check in checks)
    still = self_test.verdicts(unfused, sizes, library=None, directory=directory)
    for check, problem in problems.items():
        if problem:
            logger.warning("the path %s of this jaxlib is left: %s", check, problem)
    if still["xla without fusions"]:
        raise ConfigError(
            f"XLA computes wrong products on this machine, with and without fusions: {still['xla without fusions']}; "
            "expected numpy's; install another version of jaxlib"
        )
    if form == "int8" and still["xla int8 without fusions"]:
        return "plain", dict(self_test.WITHOUT_FUSIONS)
    return form, dict(self_test.WITHOUT_FUSIONS)
