"""Prefect's state in a folder of the tests' own, and one server on loopback for all of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.flows.prefect_home import prepare
from orchestration.flows.prefect_server import LoopbackServer, loopback_server


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where Prefect keeps its state; set before anything imports it."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"  # else the end waits a minute for a server that is gone
    return prepare()


@pytest.fixture(scope="session")
def server(prefect_home: Path) -> Iterator[LoopbackServer]:
    with loopback_server(prefect_home) as server:
        yield server
