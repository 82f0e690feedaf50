"""`cloudcomplete allocator evaluate`: what it writes, and what it refuses before it simulates."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestration.allocator import arena, checkpoint, evaluate
from orchestration.allocator.baselines import STATIC
from tests.cloudcomplete.shell import Shell

RATES = "client,window_start_s,requests_per_s,interarrival_cv\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "rates.csv"
    path.write_text(RATES + "".join(f"a,{600 * i},{10 + i % 5},1\n" for i in range(12)))
    return path


def test_means_and_intervals_are_printed_and_plots_written(
    shell: Shell, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BASELINES", (STATIC,))  # the others only take time
    options = ["--no-policy", "--replicas", 2, "--seeds", 2, "--plots", tmp_path / "plots", "--json", tmp_path / "out"]
    done = shell("allocator", "evaluate", "--trace", trace, *options)
    assert (done.code, done.err) == (0, "")
    rows: dict[str, dict[str, Any]] = {row["policy"]: row for row in json.loads((tmp_path / "out").read_text())["rows"]}
    hours = rows["oracle"]
    interval = f"[{hours['replica_hours_ci_low']:.1f}, {hours['replica_hours_ci_high']:.1f}]"
    assert f"| oracle | {hours['replica_hours']:.1f} {interval} |" in done.out
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "costs.svg", "replicas.svg", "service-level.svg",
    ]  # fmt: skip


def test_a_trace_or_a_policy_that_cannot_be_used_is_one_line_before_anything_is_simulated(
    shell: Shell, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(arena, "simulate")
    checkpoint.save(checkpoint._like(), tmp_path / "policy")
    (tmp_path / "policy" / "layout.json").write_bytes(msgspec.json.encode({"state": ["moon_phase"]}))
    done = shell("allocator", "evaluate", "--trace", trace, "--policy", tmp_path / "policy")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "reads another state" in done.err
    for text, message in (("", "is empty; expected a header line"), (RATES + "a,600,1,1\na,0,1,1\n", "goes back to")):
        trace.write_text(text)
        done = shell("allocator", "evaluate", "--trace", trace, "--no-policy")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert message in done.err
