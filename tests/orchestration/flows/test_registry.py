"""The list of flows."""

import subprocess
import sys

import pytest

from orchestration.flows.errors import FlowInputError
from orchestration.flows.registry import FLOWS, load_flow

pytestmark = pytest.mark.filterwarnings("default")  # Prefect's own


@pytest.mark.usefixtures("prefect_home")
def test_every_flow_is_an_async_prefect_flow_named_as_in_the_list() -> None:
    for name in FLOWS:
        flow = load_flow(name)
        assert flow.name == name
        assert flow.isasync
        assert flow.fn.__doc__


def test_an_unknown_flow_is_refused() -> None:
    with pytest.raises(FlowInputError, match=r"'nothing' is no flow; expected one of: partition-model"):
        load_flow("nothing")


def test_the_command_line_and_the_list_do_not_load_prefect() -> None:
    code = "import sys, cloudcomplete.cli, orchestration.flows.runs; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
