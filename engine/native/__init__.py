"""Kernels in C for CPUs, where XLA's own code is far from what the memory allows (docs/decisions/0002-kv-layout.md).

They are compiled for the machine at hand when an engine first starts, kept beside JAX's compiled programs, and called
by XLA as custom calls. Without a C compiler the engine runs on XLA alone.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib.version

ATTENTION = "cloudcomplete_attention"
SPARSE_ATTENTION = "cloudcomplete_sparse_attention"
PRODUCT = "cloudcomplete_product"
INT8_PRODUCT = "cloudcomplete_int8_product"
"""Names of the kernels' custom calls."""

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.c", "linear.c", "native.h"))

_registered: set[str] = set()
"""What XLA's registry, which is the process's and refuses a name twice, already holds."""


def build(directory: Path, *, machine: str = "native") -> Path:
    """Compile the kernels for this machine and return the library; raises OSError or SubprocessError.

    `machine` is the processor they are made for, in the compiler's words. The library's name carries a hash of all it
    depends on, and it is written aside and renamed, so that processes that start together do not read each other's
    half-written file.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler found; install one (package gcc or clang) or set CC")
    flags = ["-O3", f"-march={machine}", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC"]
    words = (*(path.read_text() for path in _SOURCES), compiler, *flags, jaxlib.version.__version__, processor())
    library = directory / f"kernels-{hashlib.sha256('|'.join(words).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=directory, suffix=".so")
        os.close(handle)
        try:
            sources = [str(path) for path in _SOURCES if path.suffix == ".c"]
            command = [compiler, *flags, f"-I{jax.ffi.include_dir()}", *sources, "-o", unfinished, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise OSError(f"{compiler} failed: {done.stderr.strip()[-400:]}")
            Path(unfinished).replace(library)
        finally:
            Path(unfinished).unlink(missing_ok=True)
    return library


def register(library: Path) -> None:
    """Load a library that `build` returned, and let XLA know its kernels; raises OSError."""
    if library.name not in _registered:
        loaded = ctypes.CDLL(str(library))
        for name in (ATTENTION, SPARSE_ATTENTION, PRODUCT, INT8_PRODUCT):
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
        _registered.add(library.name)


def processor() -> str:
    """Return what `-march=native` depends on: the instruction sets of this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
