"""The mesh of devices that one engine runs on: axes `stage` (layers, one part after the other) and `tensor` (heads and
MLP columns, side by side). Checks that the model can be divided so; knows no weights and no programs.
"""

from collections.abc import Sequence

import jax
import numpy as np

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.model.config import ModelConfig
from engine.stages import plan_stages

STAGE, TENSOR = "stage", "tensor"

_MEMORY_SHARE = 0.6
"""Of a device's memory, what weights may take; the rest is for KV and what programs need meanwhile."""


def choose_mesh(config: EngineConfig, model: ModelConfig, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    """Return the mesh asked for; with `num_stages` 0, of the fewest stages whose memory holds the weights.

    Raises ConfigError when the model cannot be divided so, or there are too few devices.
    """
    num_tensor = config.num_tensor
    if num_tensor < 1:
        raise ConfigError(f"engine.num_tensor is {num_tensor}; expected at least 1")
    if config.num_stages < 0:
        raise ConfigError(f"engine.num_stages is {config.num_stages}; expected at least 0 (chosen by memory)")
    for name, heads in (("query", model.num_heads), ("KV", model.num_kv_heads)):
        if heads % num_tensor:
            divisors = [n for n in range(1, heads + 1) if not (model.num_heads % n or model.num_kv_heads % n)]
            raise ConfigError(
                f"the model's {heads} {name} heads cannot be divided by --tensor {num_tensor}; expected one of "
                f"{', '.join(map(str, divisors))}; use --stages for the other devices"
            )
    if model.intermediate_size % num_tensor:
        raise ConfigError(
            f"the model's MLP of {model.intermediate_size:,} columns cannot be divided by --tensor {num_tensor}; "
            "expected a divisor; use --stages for the other devices"
        )
    num_stages = config.num_stages or _fewest_stages(config, model, devices[0])
    plan_stages(model, num_stages)
    size = num_stages * num_tensor
    if size > len(devices):
        raise ConfigError(
            f"a mesh of {num_stages} stages x {num_tensor} tensor needs {size} devices, got {len(devices)}; "
            "lower --stages or --tensor, start more processes, or on a CPU set JAX_NUM_CPU_DEVICES"
        )
    grid = np.array(devices[:size]).reshape(num_stages, num_tensor)
    return jax.sharding.Mesh(grid, (STAGE, TENSOR), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def _fewest_stages(config: EngineConfig, model: ModelConfig, device: jax.Device) -> int:
    """Return 1 where memory is the machine's own, as on a CPU."""
    if device.platform == "cpu":
        return 1
    limit = int((device.memory_stats() or {}).get("bytes_limit", 0))
    bytes_each = 1 if config.weights == "int8" else 4 if config.dtype == "float32" else 2
    return fewest_stages(model, num_tensor=config.num_tensor, bytes_each=bytes_each, device_bytes=limit)


def fewest_stages(model: ModelConfig, *, num_tensor: int, bytes_each: int, device_bytes: int) -> int:
    """Return the fewest stages of which each fits into a device; `bytes_each` is of one parameter."""
    room = device_bytes * _MEMORY_SHARE
    for num_stages in range(1, model.num_layers + 1):
        largest = max(plan.num_parameters for plan in plan_stages(model, num_stages))
        if largest * bytes_each / num_tensor <= room:
            return num_stages
    raise ConfigError(
        f"one layer a stage takes {largest * bytes_each / num_tensor / 1e9:.1f} GB a device, and {room / 1e9:.1f} GB "
        "of each are for weights; raise --tensor, or use engine.weights = 'int8'"
    )
