"""What the machine can do, measured in the run that uses the figure, and which devices it computes on."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np


def measure_read_bandwidth(*, num_bytes: int = 1 << 28, rounds: int = 5) -> float:
    """Return bytes per second that all cores together read from memory: the median of several sums over one array.

    A median, because what it is compared with is one: on a shared machine the best moment of one and the usual moment
    of the other do not belong together.
    """
    values = np.ones(num_bytes // 4, np.float32)
    parts = np.array_split(values, len(os.sched_getaffinity(0)))
    seconds = []
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(rounds):
            began = time.perf_counter()
            list(pool.map(np.add.reduce, parts))
            seconds.append(time.perf_counter() - began)
    return float(values.nbytes / statistics.median(seconds))


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


def describe_devices() -> str:
    """Return number and kind of the devices that JAX computes on."""
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind}"
