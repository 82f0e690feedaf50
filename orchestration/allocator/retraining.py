"""The recurring work as plain functions: prepare, train, evaluate, promote. Flows call them one by one."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from orchestration.allocator import checkpoint
from orchestration.allocator.arena import Arena
from orchestration.allocator.errors import AllocatorError, TelemetryError
from orchestration.allocator.evaluate import Candidate, Comparison, compare_policies
from orchestration.allocator.policy import LEARNED
from orchestration.allocator.service import StepTimes, Workload
from orchestration.allocator.simulator import FleetRules
from orchestration.allocator.traces import read_trace
from orchestration.allocator.training import Outcome
from orchestration.allocator.training import train as train_policy

Report = Callable[[str], None]


def _ignore(line: str) -> None:
    del line


def rules_of(*, slo_s: float = 0.3, cold_start_s: int = 40) -> FleetRules:
    """Return the rules of a fleet; raises AllocatorError."""
    if slo_s <= 0 or cold_start_s < 1:
        raise AllocatorError(
            f"the SLO is {slo_s:g} s and the cold start {cold_start_s} s; expected a time above 0 and at least 1 s"
        )
    return FleetRules(slo_s=slo_s, cold_start_s=cold_start_s)


def read_steps(path: Path | None) -> StepTimes:
    """Return the step times in a file, or the defaults; raises TelemetryError."""
    if path is None:
        return StepTimes()
    try:
        return msgspec.json.decode(path.read_bytes(), type=StepTimes)
    except (OSError, msgspec.MsgspecError) as error:
        raise TelemetryError(f"cannot read step times from {path}: {error}; expected JSON of step times") from None


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
    """Read a trace and scale it so that the best static size is `replicas`; raises TraceError."""
    arena = Arena(
        read_trace(trace), steps=steps or StepTimes(), workload=workload or Workload(), rules=rules or FleetRules()
    )
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
    policy: Outcome | None,
    *,
    attainment: float = 0.99,
    num_seeds: int = 5,
    on_progress: Report = _ignore,
) -> Comparison:
    """Compare a policy (or none) with baselines and oracle on the test stretch."""
    candidate = None if policy is None else Candidate(policy=LEARNED, shared=policy.weights)
    return compare_policies(
        arena, attainment=attainment, num_seeds=num_seeds, candidate=candidate, on_progress=on_progress
    )


def save(policy: Outcome, directory: Path) -> None:
    """Write a policy's checkpoint."""
    checkpoint.save(policy.weights, directory)


def load(directory: Path) -> Outcome:
    """Read a policy's checkpoint; raises CheckpointError."""
    return Outcome(weights=checkpoint.load(directory), headline={})


def promote(policy: Outcome, comparison: Comparison, directory: Path) -> bool:
    """Write the policy to where the controller looks, if the comparison made it the incumbent; return whether."""
    if comparison.headline["incumbent"] != LEARNED.name:
        return False
    save(policy, directory)
    return True
