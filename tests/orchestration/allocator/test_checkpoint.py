from pathlib import Path

import msgspec
import numpy as np
import pytest

from orchestration.allocator import checkpoint
from orchestration.allocator.errors import CheckpointError


def test_a_policy_is_read_as_it_was_written_and_replaced(tmp_path: Path) -> None:
    weights = checkpoint._like()._replace(mean=np.arange(20, dtype=np.float32))
    for _ in range(2):
        checkpoint.save(weights, tmp_path / "policy")
    assert np.array_equal(checkpoint.load(tmp_path / "policy").mean, weights.mean)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_policy_of_another_state_layout_is_refused(tmp_path: Path) -> None:
    checkpoint.save(checkpoint._like(), tmp_path / "policy")
    (tmp_path / "policy" / "layout.json").write_bytes(msgspec.json.encode({"state": ["moon_phase"]}))
    with pytest.raises(CheckpointError, match=r"reads another state \(.*differs\); train it again"):
        checkpoint.load(tmp_path / "policy")


def test_what_is_no_policy_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no policy"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="exists and is no policy"):
        checkpoint.save(checkpoint._like(), tmp_path)
