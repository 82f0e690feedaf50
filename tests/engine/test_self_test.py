import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from engine import native, self_test
from engine.model import matrix
from engine.self_test import Sizes, check_form, verdicts

SIZES = Sizes(head_size=16, matrices=((16, 48), (20, 16), (16, 70)))

CRASHES = """
#include <signal.h>
#include "native.h"
#define KERNEL(name, action) XLA_FFI_Error *name(XLA_FFI_CallFrame *call) { \\
    if (!is_metadata_call(call)) action; \\
    return NULL; }
KERNEL(cloudcomplete_attention, raise(SIGILL))
KERNEL(cloudcomplete_sparse_attention, raise(SIGILL))
KERNEL(cloudcomplete_product, raise(SIGSEGV))
KERNEL(cloudcomplete_int8_product, return fail(call->api, "not today"))
"""


@pytest.fixture
def crashing(tmp_path: Path) -> Path:
    """Return a library whose kernels kill the process that calls them."""
    source, library = tmp_path / "crashes.c", tmp_path / "crashes.so"
    source.write_text(CRASHES)
    includes = [f"-I{jax.ffi.include_dir()}", f"-I{Path(native.__file__).parent}"]
    command = ["cc", "-w", "-shared", "-fPIC", *includes, str(source), "-o", str(library), "-lm"]
    subprocess.run(command, check=True)
    return library


def test_good_kernels_pass_and_the_verdict_is_kept(kernels: Path, tmp_path: Path, monkeypatch) -> None:
    checks = ("attention", "panels", "int8 panels")
    passed = dict.fromkeys(checks)
    assert verdicts(checks, SIZES, library=kernels, directory=tmp_path) == passed
    monkeypatch.setattr(self_test, "_run_in_child", None)
    assert verdicts(checks, SIZES, library=kernels, directory=tmp_path) == passed


def test_a_crash_is_a_verdict_that_is_kept_and_the_checks_after_it_still_run(
    crashing: Path, tmp_path: Path, monkeypatch
) -> None:
    checks = ("attention", "panels", "int8 panels", "xla")
    found = verdicts(checks, SIZES, library=crashing, directory=tmp_path)
    assert "not today" in (found.pop("int8 panels") or "")
    assert found == {
        "attention": "its self-test was killed by SIGILL",
        "panels": "its self-test was killed by SIGSEGV",
        "xla": None,
    }
    monkeypatch.setattr(self_test, "_run_in_child", None)
    assert verdicts(tuple(found), SIZES, library=crashing, directory=tmp_path) == found


@pytest.mark.parametrize("change", ["sizes", "library", "flags", "processor"])
def test_a_verdict_holds_only_for_what_it_was_found_on(kernels: Path, tmp_path: Path, monkeypatch, change) -> None:
    asked: list[list[str]] = []

    def run(checks, *_):
        asked.append(checks)
        return dict.fromkeys(checks), {}

    monkeypatch.setattr(self_test, "_run_in_child", run)
    sizes, library = SIZES, kernels
    for _ in range(2):
        verdicts(("panels",), sizes, library=library, directory=tmp_path)
    assert len(asked) == 1
    if change == "sizes":
        sizes = Sizes(head_size=32, matrices=SIZES.matrices)
    elif change == "library":
        library = Path("kernels-of-other-sources.so")
    elif change == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    else:
        monkeypatch.setattr(native, "processor", lambda: "another")
    verdicts(("panels",), sizes, library=library, directory=tmp_path)
    assert len(asked) == 2


def test_a_damaged_verdict_is_found_anew(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(self_test, "_run_in_child", lambda checks, *_: (dict.fromkeys(checks, "no"), {}))
    verdicts(("xla",), SIZES, library=None, directory=tmp_path)
    next(tmp_path.glob("verdicts-*.json")).write_text("{")
    assert verdicts(("xla",), SIZES, library=None, directory=tmp_path) == {"xla": "no"}


def test_a_child_that_cannot_even_start_is_quoted(tmp_path: Path) -> None:
    found = verdicts(("panels",), SIZES, library=tmp_path / "none.so", directory=tmp_path)
    assert found["panels"] is not None
    assert "its self-test ended with exit code 1: OSError" in found["panels"]


def test_a_child_that_hangs_is_ended_and_asked_again_at_the_next_start(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(self_test, "_TIMEOUT_S", 0.05)
        found = verdicts(("xla",), SIZES, library=None, directory=tmp_path)
    assert found == {"xla": "its self-test did not end within 0.05 s"}
    assert verdicts(("xla",), SIZES, library=None, directory=tmp_path) == {"xla": None}


@pytest.mark.parametrize("form", ["plain", "panels", "int8", "int8 panels"])
def test_a_product_that_is_wrong_is_noticed(form, kernels: Path, monkeypatch) -> None:
    assert check_form(form, SIZES) is None
    name = {"panels": "_panels_product", "int8": "_int8_product", "int8 panels": "_int8_panels_product"}.get(form)
    if name is None:
        monkeypatch.setattr(jnp, "matmul", lambda x, y, **_: jnp.einsum("ri,io->ro", x, y) + 0.01)
    else:
        right = getattr(matrix, name)
        monkeypatch.setattr(matrix, name, lambda *arguments: right(*arguments).at[0, -1].add(0.01))
    assert "differs from the reference by" in check_form(form, SIZES)


@pytest.mark.parametrize(("compiler", "machine"), [("gcc", "x86-64-v3"), ("clang", "x86-64"), ("gcc", "armv8-a")])
def test_kernels_for_lesser_processors_compute_the_same(compiler, machine, tmp_path: Path, monkeypatch) -> None:
    if machine.startswith("x86") != (os.uname().machine == "x86_64") or not shutil.which(compiler):
        pytest.skip(f"no {compiler} for {machine} here")
    if machine == "x86-64-v3" and "avx2" not in native.processor():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("CC", compiler)
    checks = ("attention", "panels", "int8 panels")
    library = native.build(tmp_path, machine=machine)
    assert verdicts(checks, SIZES, library=library, directory=tmp_path) == dict.fromkeys(checks)
