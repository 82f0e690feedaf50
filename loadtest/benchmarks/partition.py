"""`bench partition`: cutting a large model into stages in bounded memory, and reading a stage at the disk's rate.

A 7 B shape in bfloat16, random weights written in pieces of one layer: 27 GB of disk while it runs, and none after.
`CLOUDCOMPLETE_BENCH_DIR` says where (default: the system's folder for temporary files).
"""

import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from engine.model.families import family_of
from engine.weights.load import read_model_config
from engine.weights.parameters import parameter_shapes
from engine.weights.partition import read_manifest, read_stage

_STAGES = 4
_ROUNDS = 3
_READ_BYTES = 1 << 24
_HF = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_016,
    "max_position_embeddings": 16_384, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e6,
}  # fmt: skip


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Write a model, partition it in a process of its own whose peak memory counts, then read a stage and the disk.

    The disk's rate is that of reading the same files plainly, front to back, none of them in the page cache; reading
    a stage checks every byte and fills the arrays. Both alternate, and the share is the median of the rounds'.
    """
    layers = int(os.environ.get("CLOUDCOMPLETE_BENCH_LAYERS", str(_HF["num_hidden_layers"])))
    with tempfile.TemporaryDirectory(dir=os.environ.get("CLOUDCOMPLETE_BENCH_DIR"), prefix="partition-") as folder:
        model, out = Path(folder) / "model", Path(folder) / "parted"
        num_bytes = write_random_model(model, dict(_HF) | {"num_hidden_layers": layers}, on_progress)
        began = time.perf_counter()
        arguments = ["partition", str(model), "--stages", str(_STAGES), "--out", str(out)]
        subprocess.run([sys.executable, "-m", "cloudcomplete", *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        on_progress(f"partitioned {num_bytes / 1e9:.1f} GB in {seconds:.0f} s, peak {peak_bytes / 2**30:.2f} GiB")
        shutil.rmtree(model)
        rows = [_read_once(out, number % _STAGES) for number in range(_ROUNDS)]
        for row in rows:
            on_progress(
                f"stage {row['stage']}: {row['stage_mb_per_s']:,.0f} MB/s, disk {row['disk_mb_per_s']:,.0f} MB/s, "
                f"share {row['share']:.2f}"
            )
    return {
        "partition_peak_gib": peak_bytes / 2**30,
        "partition_mb_per_s": num_bytes / seconds / 1e6,
        "model_gb": num_bytes / 1e9,
        "stage_read_disk_share": statistics.median(row["share"] for row in rows),
        "stage_read_mb_per_s": statistics.median(row["stage_mb_per_s"] for row in rows),
    }, rows


def write_random_model(directory: Path, hf: dict[str, Any], on_progress: Callable[[str], None]) -> int:
    """Write a model directory with random bfloat16 weights, a file per layer; return the bytes of its weights."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(hf))
    config = read_model_config(directory)
    names = family_of(hf).tensor_names(config)
    shapes = parameter_shapes(config)
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for shard in [*range(config.num_layers), None]:
        tensors: dict[str, np.ndarray] = {}
        for path, shape in shapes.items():
            if (path[1] if path[0] == "layers" else None) != shard:
                continue
            parts = names[path]
            sizes = _sizes(shape[-1], len(parts), config.num_heads, config.num_kv_heads)
            for name, size in zip(parts, sizes, strict=True):
                out_in = (*shape[:-1], size)[::-1] if path[-1] == "kernel" else (*shape[:-1], size)
                is_scale = path[-1] == "scale"
                tensors[name] = np.ones(out_in, jnp.bfloat16) if is_scale else _random(rng, out_in)
        file = f"model-{'rest' if shard is None else f'{shard:05d}'}.safetensors"
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if shard is None or shard % 8 == 7:
            on_progress(f"written {num_bytes / 1e9:.1f} GB of random weights")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return num_bytes


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return bfloat16 values of both signs between 2^-7 and 2^-5, as fast as bits can be drawn."""
    bits = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16) & 0x80FF | 0x3C00
    values: np.ndarray = bits.view(jnp.bfloat16).reshape(shape)
    return values


def _sizes(last: int, num_parts: int, num_heads: int, num_kv_heads: int) -> list[int]:
    if num_parts == 3:
        head = last // (num_heads + 2 * num_kv_heads)
        return [num_heads * head, num_kv_heads * head, num_kv_heads * head]
    return [last // num_parts] * num_parts


def _read_once(directory: Path, stage: int) -> dict[str, Any]:
    files = [directory / file for file, _ in read_manifest(directory).stages[stage].parameters.values()]
    disk_s = [_seconds_of(lambda: _read_plainly(files), files)]
    stage_s = _seconds_of(lambda: sum(array.nbytes for _, array in read_stage(directory, stage)), files)
    disk_s.append(_seconds_of(lambda: _read_plainly(files), files))
    num_bytes = sum(file.stat().st_size for file in files)
    disk = num_bytes / statistics.mean(disk_s)
    return {
        "stage": stage,
        "num_bytes": num_bytes,
        "stage_mb_per_s": num_bytes / stage_s / 1e6,
        "disk_mb_per_s": disk / 1e6,
        "share": num_bytes / stage_s / disk,
    }


def _seconds_of(read: Callable[[], Any], files: list[Path]) -> float:
    """Return the seconds of a reading that finds none of the files in memory."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    read()
    return time.perf_counter() - began


def _read_plainly(files: list[Path]) -> None:
    buffer = bytearray(_READ_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
