"""What the machine is and which versions are installed, as results record it.

Loads no JAX: a program that measures a server must not take the accelerator that the server uses.
"""

import importlib.metadata
import os
import platform
from pathlib import Path

_PACKAGES = ("cloudcomplete", "jax", "jaxlib", "flax", "numpy", "grpcio", "tokenizers", "scann")


def describe_machine() -> dict[str, str | int]:
    """Return processor, cores, memory, system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
    }


def describe_versions() -> dict[str, str]:
    """Return versions of Python and of what decides the speed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
