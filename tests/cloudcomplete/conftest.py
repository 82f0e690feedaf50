"""Fixtures shared by the tests of commands."""

from collections.abc import Iterator

import pytest

from tests.cloudcomplete.shell import Shell
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def address() -> Iterator[str]:
    with InProcessServer(CountingEngine()) as server:
        yield server.address
