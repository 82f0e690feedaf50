"""The recurring work as plain functions: prepare, train, evaluate, promote. Flows call them one by one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from orchestration.allocator import checkpoint
from orchestration.allocator.arena import Arena
from orchestration.allocator.errors import AllocatorError
from orchestration.allocator.evaluate import Candidate, Comparison, compare_policies
from orchestration.allocator.policy import LEARNED, Weights
from orchestration.allocator.service import StepTimes, Workload
from orchestration.allocator.simulator import FleetRules
from orchestration.allocator.traces import read_trace
from orchestration.allocator.training import Outcome
from orchestration.allocator.training import train as train_policy

Report = Callable[[str], None]
Verdict = Literal["promoted", "kept", "retired"]
INCUMBENT = "incumbent"
"""What the promoted policy is called in a comparison."""


def _ignore(line: str) -> None:
    del line


def rules_of(*, slo_s: float = 0.3, cold_start_s: int = 40) -> FleetRules:
    """Return the rules of a fleet; raises AllocatorError."""
    if slo_s <= 0 or cold_start_s < 1:
        raise AllocatorError(
            f"the SLO is {slo_s:g} s and the cold start {cold_start_s} s; expected a time above 0 and at least 1 s"
        )
    return FleetRules(slo_s=slo_s, cold_start_s=cold_start_s)


def prepare(
    trace: Path,
    *,
    rules: FleetRules | None = None,
    replicas: int = 8,
    attainment: float = 0.99,
    steps: StepTimes | None = None,
    workload: Workload | None = None,
    on_progress: Report = _ignore,
) -> Arena:
    """Read a trace and scale it so that the best static size is `replicas`; 0: as it is. Raises TraceError."""
    arena = Arena(
        read_trace(trace), steps=steps or StepTimes(), workload=workload or Workload(), rules=rules or FleetRules()
    )
    if replicas:
        arena.fit_scale(replicas, attainment)
        on_progress(
            f"traffic times {arena.scale:.4g}: {replicas} replicas attain {attainment:.3f} where policies are tuned"
        )
    return arena


def train(arena: Arena, *, attainment: float = 0.99, budget_s: float = 240, on_progress: Report = _ignore) -> Outcome:
    """Learn a policy on the tuning stretch."""
    return train_policy(arena, attainment=attainment, budget_s=budget_s, on_progress=on_progress)


def evaluate(
    arena: Arena,
    policy: Weights | None,
    *,
    incumbent: Weights | None = None,
    attainment: float = 0.99,
    num_seeds: int = 5,
    on_progress: Report = _ignore,
) -> Comparison:
    """Compare a policy (or none) with baselines, oracle and the policy that is promoted on the test stretch."""
    candidates = [
        Candidate(
            name=name,
            policy=LEARNED,
            setting={key: float(value) for key, value in weights.setting.items()},
            shared=weights,
        )
        for name, weights in ((LEARNED.name, policy), (INCUMBENT, incumbent))
        if weights is not None
    ]
    return compare_policies(
        arena, attainment=attainment, num_seeds=num_seeds, candidates=candidates, on_progress=on_progress
    )


def judge(comparison: Comparison) -> tuple[Verdict, str]:
    """Return what is to become of the new policy and of the promoted one, and why."""
    rows = {row["policy"]: row for row in comparison.rows}
    own, old = rows[LEARNED.name], rows.get(INCUMBENT)
    best = comparison.headline["best_baseline"]
    if own["is_better"]:
        if old is None:
            return "promoted", f"it keeps the service level and costs less than {best}"
        if not old["is_better"]:
            return "promoted", f"it costs less than {best}, the promoted one no longer does"
        if old["saved_ci_low"] is not None and old["saved_ci_low"] > 0:
            return "promoted", "it costs less than the promoted one"
        return "kept", "it does not surely cost less than the promoted one"
    if old is not None and not old["is_better"]:
        return "retired", f"neither it nor the promoted one beats {best} at the service level, which stays on"
    return "kept", "it does not beat the baselines at the service level"


def act(verdict: Verdict, candidate: Path, directory: Path) -> None:
    """Put a candidate in the place of the promoted policy, or take that away, as `judge` said."""
    if verdict == "promoted":
        checkpoint.save(checkpoint.load(candidate), directory)
    elif verdict == "retired" and directory.exists():
        checkpoint.load(directory)  # raises for what is no policy
        aside = directory.with_name(f"{directory.name}.retired")
        shutil.rmtree(aside, ignore_errors=True)
        directory.replace(aside)
