"""Settings shared by all tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The tests are written for CPUs; a machine with an accelerator must not change what they check.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("cloudcomplete", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cloudcomplete")


def pytest_configure(config: pytest.Config) -> None:
    """Compile each program once: half of what the tests take otherwise. Processes that tests start share it."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_kept(config, "compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    # A job in the background ignores interrupts, and so would the processes that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def compile_cache(pytestconfig: pytest.Config) -> Path:
    """Return where engines keep kernels, verdicts and programs from one test, and one run, to the next."""
    return _kept(pytestconfig, "engines")


def _kept(config: pytest.Config, name: str) -> Path:
    """Return a folder of this test process alone: JAX writes entries in place, where others would read half of one."""
    return Path(config.cache.mkdir(f"{name}-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"))
