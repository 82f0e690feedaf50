from pathlib import Path

import pytest

from engine.weights.fingerprint import fingerprint


def write_model(directory: Path, *, weights: bytes = b"w" * 5_000_000, config: bytes = b"{}") -> Path:
    directory.mkdir()
    (directory / "config.json").write_bytes(config)
    (directory / "model.safetensors").write_bytes(weights)
    return directory


def test_a_copy_has_the_same_name(tmp_path: Path) -> None:
    assert fingerprint(write_model(tmp_path / "a")) == fingerprint(write_model(tmp_path / "b"))


@pytest.mark.parametrize(
    "changed", [{"weights": b"w" * 5_000_001}, {"weights": b"v" + b"w" * 4_999_999}, {"config": b'{"a": 1}'}]
)
def test_other_contents_have_another_name(tmp_path: Path, changed: dict[str, bytes]) -> None:
    assert fingerprint(write_model(tmp_path / "a")) != fingerprint(write_model(tmp_path / "b", **changed))


def test_an_empty_file_has_a_name_too(tmp_path: Path) -> None:
    assert len(fingerprint(write_model(tmp_path / "a", weights=b""))) == 32
