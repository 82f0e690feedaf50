"""Settings shared by all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The tests are written for CPUs; a machine with an accelerator must not change what they check.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("cloudcomplete", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cloudcomplete")


def pytest_configure(config: pytest.Config) -> None:
    """Compile each program once: half of what the tests take otherwise. Processes that tests start share it."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("compiled")))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(1 << 30))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


@pytest.fixture(scope="session")
def compile_cache(pytestconfig: pytest.Config) -> Path:
    """Return where engines keep kernels, verdicts and programs from one test, and one run, to the next."""
    return Path(pytestconfig.cache.mkdir("engines"))
