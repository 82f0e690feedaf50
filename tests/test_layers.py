"""The house's layers, and what a worker has to install."""

import subprocess
import sys
from importlib.util import find_spec

import pytest


def test_imports_run_downwards_only() -> None:
    assert find_spec("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("engine.loader", {"grpc", "google.protobuf", "orbax", "server", "cache", "loadtest", "cloudcomplete"}),
        ("engine.scheduler", {"jax", "flax"}),
        ("cloudcomplete", {"jax", "grpc"}),
        ("cloudcomplete.cli", {"jax", "grpc"}),
        ("server.client", {"jax"}),
        ("cache.completion_cache", {"jax", "grpc", "redis", "scann", "engine", "server"}),
    ],
)
def test_importing_a_module_brings_nothing_it_should_not_need(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
