"""The benchmark for GPUs on a tiny shape and a CPU: everything it measures but the device it is for."""

import importlib.util
import json
import stat

import jax
import pytest

from engine.model.config import ModelConfig
from loadtest.benchmarks import gpu
from loadtest.errors import RunError

TINY = ModelConfig(
    family="qwen2", vocab_size=8192, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1,
    head_size=16, max_context=4096, has_qkv_bias=True,
)  # fmt: skip


def test_a_shape_is_measured_and_a_peer_that_is_not_there_is_left_out_and_that_is_said(
    monkeypatch, compile_cache
) -> None:
    monkeypatch.delenv("CLOUDCOMPLETE_PEERS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    headline, rows = gpu.measure_shape(
        TINY,
        said.append,
        concurrent=(1,),
        prompt=300,
        prefill_chunk=128,
        dtype="float32",
        compile_cache=str(compile_cache),
    )
    assert set(headline) == {"decode_b1_copy_share", "prefill_4k_product_share", "keystroke_p50_ms"}
    assert all(value > 0 for value in headline.values())
    assert [row["case"] for row in rows[:3]] == ["1 rows of 1", "1 rows of 4", "1 rows of 8"]
    assert "transformers is not measured: it cannot be imported here, and CLOUDCOMPLETE_PEERS is not set" in said


def test_a_peer_is_asked_for_the_same_shape(monkeypatch, tmp_path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    found = json.dumps({"decode_s": 0.25, "device": "cuda", "version": "5"})
    python.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/asked\necho '{found}'\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CLOUDCOMPLETE_PEERS", str(tmp_path))
    said: list[str] = []
    assert gpu._transformers_step(TINY, said.append) == 0.25
    script, config, context, _ = (tmp_path / "asked").read_text().splitlines()
    assert script.endswith("transformers_shape.py")
    assert json.loads(config)["num_key_value_heads"] == 1
    assert context == "1024"


def test_a_peer_that_fails_is_left_out_with_its_last_words(monkeypatch, tmp_path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'no room left' >&2\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CLOUDCOMPLETE_PEERS", str(tmp_path))
    said: list[str] = []
    assert gpu._transformers_step(TINY, said.append) is None
    assert said == ["transformers is not measured: no room left"]


def test_without_a_gpu_it_says_what_is_needed() -> None:
    assert jax.default_backend() == "cpu"
    with pytest.raises(RunError, match=r"needs a GPU; JAX computes on cpu; install the extra cuda12 or cuda13"):
        gpu.measure(lambda message: None)
