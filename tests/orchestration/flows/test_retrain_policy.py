"""Flow `retrain-policy`: from telemetry to a promoted policy, and on from where it was stopped."""

import asyncio
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from orchestration.allocator import checkpoint, evaluate, retraining
from orchestration.allocator.baselines import QUEUEING, STATIC
from orchestration.allocator.errors import AllocatorError
from orchestration.allocator.evaluate import Comparison
from orchestration.allocator.policy import Weights
from orchestration.allocator.telemetry import Counts, Interval
from orchestration.allocator.training import Outcome
from orchestration.flows.errors import FlowInputError
from orchestration.flows.prefect_server import LoopbackServer
from server.record_file import RecordFile

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("prefect_home")]  # Prefect's own warnings


def record(path: Path, *, hours: float) -> str:
    """Write telemetry of a fleet whose traffic swings between 1 and 3 busy replicas."""
    file = RecordFile(path, max_bytes=1 << 26)
    for number in range(round(hours * 360)):
        arrived = 280 * (2 - math.cos(number / 360 * 2 * math.pi))
        tokens = {"prompt_tokens": 1500 * arrived, "reused_tokens": 750 * arrived, "generated_tokens": 22 * arrived}
        counts = dict.fromkeys(Counts.__struct_fields__, 0.0) | {"arrived": arrived, "answered": arrived} | tokens
        file.append(Interval(time_s=1e9 + 10.0 * number, length_s=10.0, **counts))
        if number % 1000 == 0:
            file.flush()
    file.flush()
    return str(path)


def run(**parameters: Any) -> dict[str, Any]:
    from orchestration.flows.retrain_policy import retrain_policy

    return dict(asyncio.run(retrain_policy.fn(**parameters)))


@pytest.mark.long
def test_telemetry_becomes_a_policy_that_is_judged_on_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BASELINES", (STATIC, QUEUEING))  # the others only take time
    telemetry = [record(tmp_path / "telemetry.jsonl", hours=2.5)]
    result = run(policy=str(tmp_path / "policy"), telemetry=telemetry, budget_s=0, seeds=2, max_replicas=8)
    assert result["verdict"] == ("promoted" if result["incumbent"] == "learned" else "kept")
    assert (tmp_path / "policy").exists() == (result["verdict"] == "promoted")
    assert result["hours"] == pytest.approx(2.5)
    work = tmp_path / "policy.retraining" / "latest"
    weights = checkpoint.load(work / "candidate")
    assert float(weights.capacity) == pytest.approx(result["capacity_per_s"])
    assert result["oracle_replica_hours"] < result["best_baseline_replica_hours"]
    report = (work / "report.md").read_text()
    assert report.startswith(f"# Policy: {result['verdict']}")
    for name in ("costs", "service-level", "replicas"):
        assert f"![{name}]({name}.svg)" in report
    assert "learned" in (work / "replicas.svg").read_text()
    for name in ("static", "mmc_proportional", "learned", "oracle"):
        assert f"| {name} |" in report


def comparison(*, own: bool, old: bool | None, saved: float = 1.0) -> Comparison:
    """Return one in which the new and the promoted policy beat the baselines or not."""
    figures = dict.fromkeys(("replica_hours", "attainment", "p95_s", "p99_s", "dropped", "changes_per_hour"), 1.0)
    rows: list[dict[str, Any]] = [{"policy": "learned", "is_better": own, **figures}]
    if old is not None:
        rows.append({"policy": "incumbent", "is_better": old, "saved_ci_low": saved, **figures})
    return Comparison(headline={"best_baseline": "static", "incumbent": "static"}, rows=rows, notes=[])


@pytest.mark.parametrize(
    ("own", "old", "saved", "verdict"),
    [
        (True, None, 0.0, "promoted"),
        (True, False, -1.0, "promoted"),
        (True, True, 1.0, "promoted"),
        (True, True, -1.0, "kept"),
        (False, None, 0.0, "kept"),
        (False, True, -1.0, "kept"),
        (False, False, 1.0, "retired"),
    ],
)
def test_only_what_beats_baselines_and_incumbent_is_promoted(
    own: bool, old: bool | None, saved: float, verdict: str
) -> None:
    assert retraining.judge(comparison(own=own, old=old, saved=saved))[0] == verdict


def policy_of(mark: float) -> Weights:
    return checkpoint._like()._replace(may_miss=jnp.float32(mark))


def test_promoting_replaces_and_retiring_moves_aside(tmp_path: Path) -> None:
    checkpoint.save(policy_of(0.5), tmp_path / "candidate")
    place = tmp_path / "policy"
    retraining.act("kept", tmp_path / "candidate", place)
    assert not place.exists()
    retraining.act("promoted", tmp_path / "candidate", place)
    assert float(checkpoint.load(place).may_miss) == 0.5
    for _ in range(2):
        retraining.act("retired", tmp_path / "candidate", place)
    assert not place.exists()
    assert float(checkpoint.load(tmp_path / "policy.retired").may_miss) == 0.5


def test_a_run_that_failed_goes_on_at_the_step_where_it_was(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from orchestration.flows import retrain_policy as module

    telemetry = [record(tmp_path / "telemetry.jsonl", hours=1)]
    failing = iter([AllocatorError("the night is over")])

    def train(*_: Any, **__: Any) -> Outcome:
        for error in failing:
            raise error
        return Outcome(weights=policy_of(0.25), headline={"taken": "imitation"})

    monkeypatch.setattr(retraining, "train", train)
    monkeypatch.setattr(retraining, "evaluate", lambda *_, **__: comparison(own=True, old=None))

    def night() -> dict[str, Any]:
        return dict(asyncio.run(module.retrain_policy(str(tmp_path / "policy"), telemetry, run_key="a night")))

    with temporary_settings({PREFECT_API_URL: server.api_url}):
        with pytest.raises(AllocatorError, match="the night is over"):
            night()
        Path(telemetry[0]).unlink()
        assert night()["verdict"] == "promoted"
        assert float(checkpoint.load(tmp_path / "policy").may_miss) == 0.25
        assert {"policies", "retrain-policy", "policies-costs"} <= artifact_keys()
    assert (tmp_path / "policy.retraining" / "a night" / "costs.svg").read_bytes().startswith(b"<svg")


def artifact_keys() -> set[str | None]:
    from prefect.client.orchestration import get_client

    async def read() -> set[str | None]:
        async with get_client() as client:
            return {artifact.key for artifact in await client.read_artifacts()}

    return asyncio.run(read())


def test_an_incumbent_of_another_state_layout_is_as_none_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "policy"
    checkpoint.save(policy_of(0.5), place)
    (place / "layout.json").write_text('{"state": ["moon_phase"]}')
    seen: list[Weights | None] = []

    def evaluate(*_: Any, incumbent: Weights | None, **__: Any) -> Comparison:
        seen.append(incumbent)
        return comparison(own=True, old=None)

    monkeypatch.setattr(retraining, "train", lambda *_, **__: Outcome(weights=policy_of(0.25), headline={}))
    monkeypatch.setattr(retraining, "evaluate", evaluate)
    assert run(policy=str(place), telemetry=[record(tmp_path / "telemetry.jsonl", hours=1)])["verdict"] == "promoted"
    assert seen == [None]
    assert float(checkpoint.load(place).may_miss) == 0.25


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowInputError, match="got both or neither of telemetry and trace; expected one of them"):
        run(policy=str(tmp_path / "policy"))
    with pytest.raises(
        FlowInputError, match=r"there is no telemetry .*none; expected the file that allocator.telemetry"
    ):
        run(policy=str(tmp_path / "policy"), telemetry=[str(tmp_path / "none")])
