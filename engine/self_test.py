"""Do the fast paths compute the right numbers on this machine, at this model's sizes, and do they pay?

Compiled kernels and XLA's own fusions can be wrong on a processor nobody tried, or crash. So before an engine uses a
path, a check compares it with something obvious: in a child process, because a crash there costs nothing. Another times
it against XLA (`speed_test.py`). Verdicts are kept beside the compiled kernels, named after all they depend on
(processor, compiler, sources, versions, sizes), good ones and bad ones; a warm start reads them. Does not know what
follows from a verdict (`paths.py`).
"""

import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from engine import native
from engine.model.attention import native_attention, portable_attention
from engine.model.attention import self_test as attention_difference
from engine.model.block_sparse import native_sparse_attention
from engine.model.block_sparse import self_test as sparse_difference
from engine.model.matrix import Form, hold, multiply, score
from engine.speed_test import race_attention, race_products

CompilerOptions = dict[str, str | bool]

WITHOUT_FUSIONS: CompilerOptions = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA options without the fusions of its CPU backend for which reports of wrong results exist; int8 is slow then."""

_ROWS = (1, 7, 100)
_MOST_OUTPUTS = 576
"""Outputs beyond this, of a vocabulary, only repeat what was checked; the last ones, which fill a panel, are kept."""
_TIMEOUT_S = 600
_CRASHES = (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model the numbers depend on."""

    head_size: int
    matrices: tuple[tuple[int, int], ...]
    """(I, O) of every kind of matrix, the table of embeddings last."""


def verdicts(checks: tuple[str, ...], sizes: Sizes, *, library: Path | None, directory: Path) -> dict[str, str | None]:
    """Return for each check None, or why its path must not be used; run only those whose verdict is not kept yet.

    `library` is what `native.build` returned; None: it could not be built, and no check of it is asked for.
    """
    kept = directory / f"verdicts-{_fingerprint(sizes, library)}.json"
    try:
        known = msgspec.json.decode(kept.read_bytes(), type=dict[str, str | None])
    except (OSError, msgspec.DecodeError):
        known = {}
    passing: dict[str, str | None] = {}
    if missing := [check for check in checks if check not in known]:
        lasting, passing = _run_in_child(missing, sizes, library)
        known |= lasting
        _write_whole(kept, msgspec.json.encode(known))
    return {check: (known | passing)[check] for check in checks}


def _fingerprint(sizes: Sizes, library: Path | None) -> str:
    versions = [importlib.metadata.version(package) for package in ("jax", "jaxlib", "numpy")]
    here = Path(__file__).parent
    sources = [
        (here / name).read_text()
        for name in ("self_test.py", "speed_test.py", "model/matrix.py", "model/attention.py", "model/block_sparse.py")
    ]
    words = (*versions, *sources, native.processor(), os.environ.get("XLA_FLAGS", ""), library.name if library else "")
    return hashlib.sha256("|".join((*words, repr(sizes))).encode()).hexdigest()[:16]


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".json")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(unfinished).replace(path)


def _run_in_child(
    checks: list[str], sizes: Sizes, library: Path | None
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Run checks in a child process; one that kills it is found wrong, and another child runs those after it.

    Returns verdicts that last, and problems that may pass: a child that took too long or was stopped from outside.
    """
    results: dict[str, str | None] = {}
    passing: dict[str, str | None] = {}
    while remaining := [check for check in checks if check not in results and check not in passing]:
        task = json.dumps([remaining, msgspec.to_builtins(sizes), str(library) if library else None])
        paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off", "PYTHONPATH": paths}
        command = [sys.executable, "-m", "engine.self_test", task]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
            output, problem, has_crashed = done.stdout, _describe_end(done), -done.returncode in _CRASHES
        except subprocess.TimeoutExpired as error:
            output = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
            problem, has_crashed = f"its self-test did not end within {_TIMEOUT_S} s", False
        begun = None
        for line in output.splitlines():
            name, _, result = line.partition("\t")
            begun = name
            if result:
                results[name], begun = json.loads(result), None
        if begun is not None or not output:
            (results if has_crashed else passing)[begun or remaining[0]] = problem
    return results, passing


def _describe_end(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"its self-test was killed by {signal.Signals(-done.returncode).name}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"its self-test ended with exit code {done.returncode}: {last[-300:]}"


def _main(task: str) -> None:
    checks, sizes, library = json.loads(task)
    if library is not None:
        native.register(Path(library))
    for check in checks:
        _say(check, "")
        try:
            problem = CHECKS[check](msgspec.convert(sizes, Sizes))
        except Exception as error:
            problem = f"its self-test failed: {error}"
        _say(check, json.dumps(problem))


def _say(name: str, result: str) -> None:
    sys.stdout.write(f"{name}\t{result}\n")
    sys.stdout.flush()


def check_attention(sizes: Sizes) -> str | None:
    """Compare the attention kernels with `xla_attention` and `xla_sparse_attention`."""
    worst = max(
        attention_difference(native_attention, head_size=sizes.head_size),
        sparse_difference(native_sparse_attention, head_size=sizes.head_size),
    )
    return _judge("its self-test", worst, 1e-4)


def check_form(form: Form, sizes: Sizes, options: CompilerOptions | None = None) -> str | None:
    """Compare products of float rows, in every size and several numbers of rows, with numpy's in float64.

    int8 forms are compared with the products of what they quantised, so rounding is no part of the difference.
    """
    rng = np.random.default_rng(0)
    for num_inputs, num_outputs, is_table in _cases(sizes):
        weights = rng.standard_normal((num_outputs, num_inputs)).astype(np.float32)
        bias = rng.standard_normal(num_outputs).astype(np.float32)
        matrix = hold(jnp.asarray(weights if is_table else weights.T), form, is_table=is_table)
        used = _rounded(weights) if form.startswith("int8") else weights.astype(np.float64)

        def product(x: jax.Array, matrix: Any, bias: jax.Array, is_table: bool = is_table) -> jax.Array:
            return score(x, matrix) + bias if is_table else multiply(x, matrix, bias)

        for rows in _ROWS:
            x = rng.standard_normal((rows, num_inputs)).astype(np.float32)
            program = jax.jit(product).lower(x, matrix, bias).compile(compiler_options=options or {})
            x_used = _rounded(x) if form in ("int8", "int8 panels") else x.astype(np.float64)
            expected = x_used @ used.T + bias
            worst = float(np.abs(np.asarray(program(x, matrix, bias)) - expected).max()) / num_inputs**0.5
            if problem := _judge(f"a product of {rows} rows by {num_inputs} x {num_outputs}", worst, 1e-4):
                return problem
    return None


def _cases(sizes: Sizes) -> list[tuple[int, int, bool]]:
    """Return (I, O, whether it is a table) of what is tried: both orders of the last matrix, which is the table."""
    short = [(i, o if o <= _MOST_OUTPUTS else _MOST_OUTPUTS - 64 + o % 64) for i, o in sizes.matrices]
    return sorted({(i, o, False) for i, o in short} | {(*short[-1], True)})


def _largest(sizes: Sizes) -> tuple[int, int]:
    """Return (I, O) of the largest matrix but the table."""
    return max(sizes.matrices[:-1], key=lambda matrix: matrix[0] * matrix[1])


def _rounded(x: np.ndarray) -> np.ndarray:
    """Return rows as symmetric bytes, by each row's largest value, stand for them."""
    scales = np.abs(x).max(axis=1, keepdims=True)
    rounded: np.ndarray = np.rint(x * (np.float32(127) / scales)) * (scales.astype(np.float64) / 127)
    return rounded


def _judge(what: str, difference: float, limit: float) -> str | None:
    if difference < limit:  # false for NaN
        return None
    return f"{what} differs from the reference by {difference:.2e}, expected below {limit:.0e}"


CHECKS: dict[str, Callable[[Sizes], str | None]] = {
    "attention": check_attention,
    "attention speed": lambda sizes: race_attention(native_attention, portable_attention, head_size=sizes.head_size),
    "panels": lambda sizes: check_form("panels", sizes),
    "panels speed": lambda sizes: race_products("panels", "plain", _largest(sizes)),
    "int8 panels": lambda sizes: check_form("int8 panels", sizes),
    "int8 panels speed": lambda sizes: race_products("int8 panels", "int8", _largest(sizes)),
    "xla": lambda sizes: check_form("plain", sizes),
    "xla without fusions": lambda sizes: check_form("plain", sizes, WITHOUT_FUSIONS),
    "xla int8": lambda sizes: check_form("int8", sizes),
    "xla int8 without fusions": lambda sizes: check_form("int8", sizes, WITHOUT_FUSIONS),
}


if __name__ == "__main__":
    _main(sys.argv[1])
