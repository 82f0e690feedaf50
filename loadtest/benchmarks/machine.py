"""What the machine can do, measured in the run that uses the figure, and what it is."""

import importlib.metadata
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

_PACKAGES = ("cloudcomplete", "jax", "jaxlib", "flax", "numpy", "grpcio", "tokenizers")


def measure_read_bandwidth(*, num_bytes: int = 1 << 28, rounds: int = 5) -> float:
    """Return bytes per second that all cores together read from memory: the best of several sums over one array."""
    values = np.ones(num_bytes // 4, np.float32)
    parts = np.array_split(values, len(os.sched_getaffinity(0)))
    seconds = []
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(rounds):
            began = time.perf_counter()
            list(pool.map(np.add.reduce, parts))
            seconds.append(time.perf_counter() - began)
    return values.nbytes / min(seconds)


def measure_matmul_rate(*, size: int = 2048, rounds: int = 5) -> float:
    """Return floating-point operations per second of a large float32 matrix product: the best of several."""
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def describe_machine() -> dict[str, str | int]:
    """Return processor, cores, memory, devices."""
    device = jax.local_devices()[0]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "devices": f"{len(jax.local_devices())} x {device.device_kind}",
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
