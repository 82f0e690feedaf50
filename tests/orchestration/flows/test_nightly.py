"""Flow `nightly`: parts with input run, one that fails does not stop the others, and a killed night goes on."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.flows.errors import FlowError
from orchestration.flows.prefect_server import LoopbackServer
from tests.orchestration.flows.test_retrain_policy import record

pytestmark = pytest.mark.filterwarnings("default")  # Prefect's own
ROOT = Path(__file__).parents[3]


@pytest.mark.usefixtures("prefect_home")
def test_a_part_that_fails_is_named_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.flows.nightly import nightly

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "project").mkdir()
    message = r"1 of 2 parts of the night of 2026-01-02 failed: retrain-predictor: .*none is no directory; .*; run the"
    night = nightly.fn(
        repositories=[str(tmp_path / "project")],
        server="127.0.0.1:1",
        feedback=str(tmp_path / "none"),
        date="2026-01-02",
    )
    with pytest.raises(FlowError, match=message):
        asyncio.run(night)
    assert list((tmp_path / "cache").rglob("*.repository"))


def test_a_night_that_was_killed_goes_on_where_it_was(
    server: LoopbackServer, prefect_home: Path, tmp_path: Path
) -> None:
    """The night is killed at its second project, then while it judges the policy, in a step that excludes others."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    telemetry = record(tmp_path / "telemetry.jsonl", hours=1)
    code = f"""
import os, signal, sys
from orchestration.flows.prefect_home import prepare
prepare()
from orchestration.allocator import refit, retraining
from orchestration.allocator.training import Outcome
from orchestration.flows import warm_cache
from orchestration.flows.runs import run_flow
from tests.orchestration.flows.test_retrain_policy import comparison, policy_of

def watch(module, function, plain=None):
    plain = plain or getattr(module, function)
    def watched(*args, **rest):
        name = args[0].name if function == "take_snapshot" else function
        with open({str(tmp_path / "done")!r}, "a") as file:
            file.write(name + "\\n")
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **rest)
    setattr(module, function, watched)

watch(warm_cache, "take_snapshot")
watch(refit, "refit")
watch(retraining, "prepare")
watch(retraining, "train", lambda *args, **rest: Outcome(weights=policy_of(0.25), headline={{}}))
watch(retraining, "evaluate", lambda *args, **rest: comparison(own=True, old=None))
watch(retraining, "act")
print(run_flow("nightly", ["repositories={tmp_path / "one"},{tmp_path / "two"}", "server=127.0.0.1:1", "date=today",
                           "telemetry={telemetry}", "policy={tmp_path / "policy"}"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": server.api_url,
                   "PREFECT_HOME": str(prefect_home), "XDG_CACHE_HOME": str(tmp_path / "cache")}  # fmt: skip

    def run(how: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code, how], env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    assert run("two").returncode == -signal.SIGKILL
    assert run("evaluate").returncode == -signal.SIGKILL
    done = run("nothing")
    assert done.returncode == 0, done.stderr
    assert "'projects': 2" in done.stdout
    assert "'verdict': 'promoted'" in done.stdout
    assert (tmp_path / "policy").is_dir()
    first, second = ["one", "two"], ["two", "refit", "prepare", "prepare", "train", "prepare", "evaluate"]
    assert (tmp_path / "done").read_text().split() == [*first, *second, "prepare", "evaluate", "act"]
