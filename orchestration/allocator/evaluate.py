"""The comparison: every policy on the test stretch of a trace, over seeds, and what share of the gap was closed.

The gap is the cost of the best tuned baseline over the oracle's, seed by seed, each tuned to the service level; a
policy that costs as much as the baseline closes 0 of it, the oracle 1. The share is not corrected for policies that
attain different shares of windows: read it beside their attainment. Baselines and the learned policy's caution are
tuned on the first 60 % of the time. The learned policy becomes the incumbent only if it keeps the service level on the
test stretch and the confidence interval of the share is above 0; otherwise the best baseline is.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from orchestration.allocator.arena import Arena, Outcome
from orchestration.allocator.baselines import BASELINES, Baseline
from orchestration.allocator.oracle import PLANNED, run_oracle
from orchestration.allocator.tuning import tune

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_SAFETY = 0.001
"""Policies are tuned to attain so much more than asked, since the test stretch is another one."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A learned policy as the comparison sees it."""

    policy: Baseline
    shared: Any
    """Weights, the same for every fleet."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What came out: `headline` is what a run is judged by, `rows` has one entry for each policy."""

    headline: dict[str, float | int | str | None]
    rows: list[dict[str, Any]]
    notes: list[str]


def compare_policies(
    arena: Arena,
    *,
    attainment: float,
    num_seeds: int,
    candidate: Candidate | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Tune on the first part, run on the rest; the arena's scale must be set."""
    target = min(attainment + _SAFETY, 1.0)
    tuned: list[tuple[Baseline, dict[str, float], Any]] = []
    for baseline in BASELINES:
        setting, hours, reached = tune(baseline, arena, target)
        on_progress(f"{baseline.name}: {setting}, {hours:.0f} replica-hours, attains {reached:.4f} where it was tuned")
        tuned.append((baseline, setting, None))
    if candidate is not None:
        setting, hours, reached = tune(
            candidate.policy,
            arena,
            target,
            features=arena.foreseen(0)[: arena.split_s // arena.rules.interval_s],
            shared=candidate.shared,
        )
        on_progress(f"learned: {setting}, {hours:.0f} replica-hours, attains {reached:.4f} where it was tuned")
        tuned.append((candidate.policy, setting, candidate.shared))
    seeds = list(range(1, num_seeds + 1))
    first = arena.split_s // arena.rules.interval_s
    outcomes: dict[str, list[Outcome]] = {}
    for policy, setting, shared in tuned:
        features = None if shared is None else np.stack([arena.foreseen(seed)[first:] for seed in seeds], axis=1)
        outcomes[policy.name] = arena.run_seeds(policy, setting, arena.test, seeds, features=features, shared=shared)
        on_progress(f"{policy.name} has run on the test stretch")
    plans = [run_oracle(arena, arena.test, attainment, seed=seed)[0] for seed in seeds]
    outcomes[PLANNED.name] = arena.run_seeds(
        PLANNED, {"none": 0.0}, arena.test, seeds, features=np.stack(plans, axis=1)[:, :, None]
    )
    rows = [
        _summarise(policy.name, outcomes[policy.name], setting)
        for policy, setting, _ in [*tuned, (PLANNED, dict[str, float](), None)]
    ]
    return _judge(arena, outcomes, rows, attainment, has_candidate=candidate is not None)


def interval_of(values: list[float]) -> tuple[float, float, float]:
    """Return (mean, low, high): a 95 % confidence interval of the mean by Student's t; infinite for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -float("inf"), float("inf")
    quantile = _STUDENT[len(values) - 2] if len(values) - 2 < len(_STUDENT) else 2.0
    half = quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def _summarise(name: str, outcomes: list[Outcome], setting: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": name, "settings": setting}
    for field in Outcome.__struct_fields__:
        mean, low, high = interval_of([getattr(one, field) for one in outcomes])
        row[field] = mean
        if np.isfinite(low):
            row |= {f"{field}_ci_low": low, f"{field}_ci_high": high}
    return row


def _judge(
    arena: Arena,
    outcomes: dict[str, list[Outcome]],
    rows: list[dict[str, Any]],
    attainment: float,
    *,
    has_candidate: bool,
) -> Comparison:
    by_name = {row["policy"]: row for row in rows}
    names = [baseline.name for baseline in BASELINES]
    keeping = [name for name in names if by_name[name]["attainment"] >= attainment]
    notes = []
    if not keeping:
        notes.append(f"no baseline attains {attainment:.3f} on the test stretch; the closest is compared")
    best = (
        min(keeping, key=lambda name: by_name[name]["replica_hours"])
        if keeping
        else max(names, key=lambda name: by_name[name]["attainment"])
    )
    headline: dict[str, float | int | str | None] = {
        "gap_closed_share": None,
        "gap_closed_ci_low": None,
        "slo_attainment_share": by_name[best]["attainment"],
        "incumbent": best,
        "best_baseline": best,
        "best_baseline_replica_hours": by_name[best]["replica_hours"],
        "oracle_replica_hours": by_name[PLANNED.name]["replica_hours"],
        "scale": arena.scale,
        "test_hours": (arena.end_s - arena.split_s) / 3600,
    }
    if has_candidate:
        shares = [
            (base.replica_hours - own.replica_hours) / max(base.replica_hours - oracle.replica_hours, 1e-9)
            for base, own, oracle in zip(outcomes[best], outcomes["learned"], outcomes[PLANNED.name], strict=True)
        ]
        mean, low, _ = interval_of(shares)
        own = by_name["learned"]
        is_better = own["attainment"] >= attainment and mean > 0 and low > 0
        headline |= {
            "gap_closed_share": mean,
            "gap_closed_ci_low": low if np.isfinite(low) else None,
            "slo_attainment_share": own["attainment"],
            "incumbent": "learned" if is_better else best,
            "learned_replica_hours": own["replica_hours"],
        }
        if not is_better:
            notes.append(
                f"the learned policy does not win (share of the gap {mean:.3f}, low end {low:.3f}, attains "
                f"{own['attainment']:.4f}): {best} stays on"
            )
    else:
        notes.append("no learned policy was given: train one with `cloudcomplete allocator train`")
    return Comparison(headline=headline, rows=rows, notes=notes)
