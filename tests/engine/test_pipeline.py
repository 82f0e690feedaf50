"""Meshes of virtual devices against one device: the same tokens, whatever the stages, and no NaN out of padding."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.pipeline import LEAST_TOKENS, num_microbatches
from engine.shapes import Shape

CASES = (
    (8, [], [(8, 1), (4, 1)]),
    (3, [None, 20, 20], [(2, 1), (1, 2), (2, 2)]),
)
"""(layers, windows, meshes): 3 layers on 2 stages are uneven, and the stages differ in windows too."""


def run_on_virtual_devices(*arguments: str) -> list[dict[str, Any]]:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    script = Path(__file__).with_name("mesh_check.py")
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_mesh_chooses_the_tokens_of_one_device() -> None:
    lines = run_on_virtual_devices(json.dumps(CASES))
    assert len(lines) == sum(len(meshes) for _, _, meshes in CASES)
    for line in lines:
        assert line["found"] == line["expected"], line["mesh"]
        assert line["difference"] < 1e-3, line["mesh"]  # false for NaN too


def test_nan_in_every_bubble_reaches_no_output_and_no_kv() -> None:
    plain, nan, leaking = run_on_virtual_devices("bubbles")
    assert plain["tokens"] == nan["tokens"]
    assert plain["kv"] == nan["kv"]
    assert (plain["num_nan"], nan["num_nan"]) == (0, 0)
    assert leaking["num_nan"] > 0, "the NaN of bubbles that pass for real are seen, so there are some"


def test_two_replicas_of_meshes_serve_as_one_device_does(compile_cache: Path) -> None:
    [line] = run_on_virtual_devices("serve", str(compile_cache))
    assert line["found"] == line["expected"]
    assert (line["finished"], line["recompiles"]) == (7, 0)
    assert line["reused"] > 100
    num_sparse, num_kept, num_visible = line["kept"]
    assert line["kept"] == line["expected_kept"]
    assert num_sparse == 1
    assert num_kept < num_visible


def test_block_sparse_attention_on_a_mesh_is_that_of_one_device_and_dense_with_every_block_kept() -> None:
    lines = run_on_virtual_devices("sparse")
    assert len(lines) == 4
    for line in lines:
        (token, gap, found), (expected_token, expected_gap, expected) = line["found"], line["expected"]
        assert token == expected_token, line
        assert abs(gap - expected_gap) < 1e-3, line
        kept, visible, mass, choices, equal = found
        assert (kept == visible) == (line["num_kept"] == 8), line
        assert 0 < mass <= choices, line
        assert equal == 0, line
        if line["num_kept"] == 4:
            assert found[:2] == expected[:2], "the same choices"
            assert mass == pytest.approx(expected[2], rel=1e-3)


def test_a_step_is_divided_into_microbatches_that_are_worth_a_tick() -> None:
    assert num_microbatches(Shape(32, 1, 0), 2) == 2
    assert num_microbatches(Shape(16, 1, 0), 4) == 1, "few rows gain nothing"
    assert num_microbatches(Shape(0, 0, 256), 2) == 16
    assert num_microbatches(Shape(4, 1, 256), 4) == 4, "rows and chunk are divided alike"
    assert num_microbatches(Shape(64, 1, 0), 1) == 1
    assert all(256 // num_microbatches(Shape(0, 0, 256), stages) >= LEAST_TOKENS for stages in (2, 4, 8))
