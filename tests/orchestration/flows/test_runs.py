"""Flows run plainly, embedded and against a server, with good parameters and bad ones."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import ConfigError
from engine.weights.load import load_model
from orchestration.flows import prefect_home as home_module
from orchestration.flows import runs
from orchestration.flows.errors import FlowInputError, PrefectServerError
from orchestration.flows.prefect_server import LoopbackServer, is_answering, loopback_server
from orchestration.flows.runs import read_parameters, run_flow, serve_flows
from server.client import Client
from server.request_log import RequestLog
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer

pytestmark = pytest.mark.filterwarnings("default")  # Prefect's own

MODEL = Path(__file__).parents[2] / "fixtures" / "models" / "untied-gqa"
ROOT = Path(__file__).parents[3]


def assert_published(out: Path) -> None:
    one, other = (load_model(directory, dtype=jnp.float32).weights for directory in (out, MODEL))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.usefixtures("prefect_home")
def test_a_flow_is_a_plain_function_too(tmp_path: Path) -> None:
    words = [f"model={MODEL}", "stages=2", f"out={tmp_path / 'out'}"]
    result = run_flow("partition-model", words, is_plain=True)
    assert result["is_new"]
    assert_published(tmp_path / "out")
    assert not run_flow("partition-model", words, is_plain=True)["is_new"]


def test_a_flow_runs_embedded_with_no_server(prefect_home: Path, tmp_path: Path) -> None:
    """In a process of its own, since the embedded server is kept until the process ends."""
    command = [sys.executable, "-m", "cloudcomplete", "flows", "run", "partition-model", "stages=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(prefect_home / "embedded")}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [*command, f"model={MODEL}", f"out={tmp_path / 'out'}"],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"directory               {tmp_path / 'out'}" in done.stdout
    assert_published(tmp_path / "out")


def run_against(server: LoopbackServer, coroutine: Any) -> Any:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.api_url}):
        return asyncio.run(coroutine())


def test_a_flow_runs_against_a_server_which_then_knows_its_tasks_and_artifacts(
    server: LoopbackServer, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    from orchestration.flows.partition_model import partition_model

    async def run() -> None:
        result = await partition_model(2, str(tmp_path / "out"), str(MODEL))
        assert result["logits_difference"] == 0
        with pytest.raises(ConfigError, match="99 stages are more than"):
            await partition_model(99, str(tmp_path / "other"), str(MODEL))
        async with get_client() as client:
            artifacts = await client.read_artifacts()
            assert "partition" in [artifact.key for artifact in artifacts]
            flow_id = (await client.read_flow_by_name("partition-model")).id
            ended = {run.state_name for run in await client.read_flow_runs() if run.flow_id == flow_id}
            assert ended == {"Completed", "Failed"}
            # The server hears of steps by events, a moment later, and on a busy machine not of every last state.
            steps = {"validate", "write-stage", "verify-stage", "verify-logits", "publish"}
            async with asyncio.timeout(120):
                while not steps <= {run.name.rsplit("-", 1)[0] for run in await client.read_task_runs()}:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)

    run_against(server, run)
    assert_published(tmp_path / "out")


def test_a_step_is_retried_when_its_failure_may_pass_and_its_result_is_kept_by_its_arguments(
    server: LoopbackServer, tmp_path: Path
) -> None:
    import prefect

    from orchestration.flows.steps import step

    calls: list[str] = []

    @step(timeout_s=10, retries=1, is_kept=True)
    def flaky(what: str, run_key: str) -> dict[str, str]:
        calls.append(what)
        if len(calls) == 1:
            raise OSError("the disk was busy")
        return {"what": what}

    @step(timeout_s=10)
    def wrong(what: str) -> None:
        calls.append(what)
        raise ValueError("wrong input stays wrong")

    key = str(tmp_path)

    @prefect.flow
    async def both() -> dict[str, str]:
        await flaky("a", key)
        return await flaky("a", key)

    @prefect.flow
    async def fails() -> None:
        await wrong("w")

    async def run() -> None:
        assert await both() == {"what": "a"}
        assert await both() == {"what": "a"}
        with pytest.raises(ValueError, match="stays wrong"):
            await fails()

    run_against(server, run)
    assert calls == ["a", "a", "w"]


def test_heavy_steps_take_turns_and_a_step_that_takes_too_long_is_tried_again_and_fails(
    server: LoopbackServer,
) -> None:
    import prefect

    from orchestration.flows.steps import step

    happened: list[str] = []

    @step(timeout_s=60, is_heavy=True)
    def heavy(name: str) -> None:
        happened.append(f"{name} begins")
        time.sleep(0.3)
        happened.append(f"{name} ends")

    is_over = threading.Event()

    @step(timeout_s=5, retries=1)
    def slow() -> None:
        happened.append("slow")
        is_over.wait(60)

    @prefect.flow
    async def flow() -> None:
        await asyncio.gather(heavy("a"), heavy("b"))
        await slow()

    try:
        with pytest.raises(TimeoutError):
            run_against(server, flow)
    finally:
        is_over.set()
    first, last = ("a", "b") if happened[0] == "a begins" else ("b", "a")
    turns = [f"{name} {what}" for name in (first, last) for what in ("begins", "ends")]
    assert happened == [*turns, "slow", "slow"]


def test_prefects_server_that_dies_in_the_middle_is_said_and_completions_are_served_on(
    prefect_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from orchestration.flows import warm_cache

    RequestLog(tmp_path / "log", max_bytes=1 << 20).close()
    plain = warm_cache.newest_requests
    with loopback_server(prefect_home / "dying") as dying, InProcessServer(CountingEngine()) as served:

        def newest_requests(*args: Any, **rest: Any) -> Any:
            dying.process.kill()
            dying.process.wait()
            return plain(*args, **rest)

        monkeypatch.setattr(warm_cache, "newest_requests", newest_requests)
        words = [f"log={tmp_path / 'log'}", f"server={served.address}"]
        message = r"stopped answering in the middle of warm-cache .*run the same command again"
        # Else Prefect waits two minutes for its server to come back.
        with pytest.raises(PrefectServerError, match=message), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}):
            run_flow("warm-cache", words, api_url=dying.api_url)
        with Client(served.address) as client:
            assert client.complete("1 ", max_tokens=1).text == "2 "


def test_the_server_of_a_run_that_was_killed_ends_too(prefect_home: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from orchestration.flows.prefect_server import loopback_server\n"
        "with loopback_server(Path(sys.argv[1]), is_embedded=True) as server:\n"
        "    print(server.api_url, flush=True)\n"
        "    time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(prefect_home / "orphan")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        api_url = process.stdout.readline().strip()
        assert is_answering(api_url)
    finally:
        process.kill()
        process.communicate()
    deadline_s = time.monotonic() + 60
    while is_answering(api_url):
        assert time.monotonic() < deadline_s, "the server outlived its run by a minute"
        time.sleep(0.2)


@pytest.mark.long
def test_a_schedule_fires_its_run_completes_and_sigterm_ends_all(prefect_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "cloudcomplete", "flows", "serve", "partition-model", f"model={MODEL}"]
    command += ["stages=2", f"out={out}", "--cron", "partition-model=* * * * *", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(prefect_home / "served")}
    environment.pop("PREFECT_API_URL", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        api_url = process.stdout.readline().strip().removeprefix("serving partition-model at ")
        request = urllib.request.Request(
            f"{api_url}/flow_runs/filter", b"{}", headers={"Content-Type": "application/json"}
        )
        states: list[str] = []
        deadline_s = time.monotonic() + 240
        while "COMPLETED" not in states:
            assert time.monotonic() < deadline_s, states
            time.sleep(1)
            with urllib.request.urlopen(request, timeout=60) as reply:
                states = [run["state_type"] for run in json.load(reply)]
        assert_published(out)
        process.terminate()
        assert process.wait(60) == 0, "Prefect handles the signal"
        assert not is_answering(api_url)
    finally:
        process.kill()
        process.communicate()


def test_a_schedule_that_is_none_is_refused(server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.api_url)
    with pytest.raises(FlowInputError, match=r"nightly: 'never' is no cron schedule; expected such as '0 3"):
        serve_flows({"nightly": []}, crons={"nightly": "never"})


@pytest.mark.usefixtures("prefect_home")
def test_a_server_that_goes_away_in_the_middle_is_a_clear_error() -> None:
    import httpx

    message = (
        r"Prefect's server at http://x/api stopped answering in the middle of nightly \(ConnectError\); expected it "
        "until the end; start it and run the same command again: steps that were finished are not run again"
    )
    with pytest.raises(PrefectServerError, match=message), runs._explained("nightly", "http://x/api"):
        raise httpx.ConnectError("All connection attempts failed")
    with pytest.raises(RuntimeError, match="of its own"), runs._explained("nightly", ""):
        raise RuntimeError("of its own")


@pytest.mark.usefixtures("prefect_home")
def test_a_server_that_is_not_there_is_said_at_once() -> None:
    assert not is_answering("http://127.0.0.1:1/api")
    with pytest.raises(PrefectServerError, match=r"no Prefect server answers at http://127.0.0.1:1/api; expected one"):
        run_flow("partition-model", [], api_url="http://127.0.0.1:1/api")


def test_prefect_that_is_not_installed_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PrefectServerError, match=r"not installed; expected it beside cloudcomplete; install it with"):
        home_module.prepare()


async def takes(stages: int, names: list[str] | None = None, share: float = 0.5) -> None: ...


def test_parameters_are_read_by_their_types_and_wrong_ones_refused() -> None:
    assert read_parameters("f", takes, ["stages=2", "share=0.25", "names=a,b"]) == {
        "stages": 2,
        "share": 0.25,
        "names": ["a", "b"],
    }
    with pytest.raises(FlowInputError, match=r"f got 'x=1'; expected key=value of: stages, names \(None\), share \(0"):
        read_parameters("f", takes, ["x=1"])
    with pytest.raises(FlowInputError, match=r"f: stages=two: Expected `int`"):
        read_parameters("f", takes, ["stages=two"])
    with pytest.raises(FlowInputError, match=r"f needs stages; expected key=value of"):
        read_parameters("f", takes, [])
