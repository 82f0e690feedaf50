"""The comparison: every policy on the test stretch of a trace, over seeds, and what share of the gap was closed.

The gap is the cost of the cheapest baseline that keeps the service level on the test stretch over the oracle's, seed by
seed; a policy that costs as much as the baseline closes 0 of it, the oracle 1. It is a matter of policies that keep the
service level: one that does not closes nothing, however little it costs, since then the baseline stays on. Baselines
are tuned on the first 60 % of the time, learned policies bring the setting that training chose there. The learned
policy becomes the incumbent only if it keeps the service level and the confidence interval of the share is above 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestration.allocator.arena import Arena, Outcome
from orchestration.allocator.baselines import BASELINES, Baseline
from orchestration.allocator.oracle import PLANNED, run_oracle
from orchestration.allocator.tuning import tune

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_COURSE_POINTS = 240
_COLUMNS = {
    "replica_hours": ("replica-hours", 1),
    "attainment": ("windows on time", 4),
    "p95_s": ("p95 s", 3),
    "p99_s": ("p99 s", 3),
    "dropped": ("dropped", 0),
    "changes_per_hour": ("changes/h", 1),
}
_SAFETY = 0.001
"""Policies are tuned to attain so much more than asked, since the test stretch is another one."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A learned policy as the comparison sees it."""

    name: str
    policy: Baseline
    setting: dict[str, float]
    shared: Any
    """Weights, the same for every fleet."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What came out: `headline` is what a run is judged by, `rows` has one entry for each policy."""

    headline: dict[str, float | int | str | None]
    rows: list[dict[str, Any]]
    notes: list[str]
    courses: dict[str, list[float]] = {}
    """Replicas of each policy over the test stretch, with the first seed: means of equal parts."""


class _Entry(NamedTuple):
    name: str
    policy: Baseline
    setting: dict[str, float]
    shared: Any


def compare_policies(
    arena: Arena,
    *,
    attainment: float,
    num_seeds: int,
    candidates: Sequence[Candidate] = (),
    on_progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Tune on the first part, run on the rest; the arena's scale must be set. Judged is the first candidate."""
    entries: list[_Entry] = []
    for baseline in BASELINES:
        setting, hours, reached = tune(baseline, arena, min(attainment + _SAFETY, 1.0))
        on_progress(f"{baseline.name}: {setting}, {hours:.0f} replica-hours, attains {reached:.4f} where it was tuned")
        entries.append(_Entry(baseline.name, baseline, setting, None))
    entries += [_Entry(one.name, one.policy, one.setting, one.shared) for one in candidates]
    seeds = list(range(1, num_seeds + 1))
    first = arena.split_s // arena.rules.interval_s
    outcomes: dict[str, list[Outcome]] = {}
    replicas: dict[str, NDArray[np.float32]] = {}
    for entry in entries:
        features = None if entry.shared is None else np.stack([arena.foreseen(seed)[first:] for seed in seeds], axis=1)
        outcomes[entry.name], replicas[entry.name] = arena.run_seeds(
            entry.policy, entry.setting, arena.test, seeds, features=features, shared=entry.shared
        )
        on_progress(f"{entry.name} has run on the test stretch")
    plans = [run_oracle(arena, arena.test, attainment, seed=seed)[0] for seed in seeds]
    outcomes[PLANNED.name], replicas[PLANNED.name] = arena.run_seeds(
        PLANNED, {"none": 0.0}, arena.test, seeds, features=np.stack(plans, axis=1)[:, :, None]
    )
    entries.append(_Entry(PLANNED.name, PLANNED, {}, None))
    rows = {entry.name: _summarise(entry.name, outcomes[entry.name], entry.setting) for entry in entries}
    comparison = _judge(arena, outcomes, rows, attainment, [one.name for one in candidates])
    return msgspec.structs.replace(comparison, courses={name: thin(values) for name, values in replicas.items()})


def tabulate(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table, means with their 95 % confidence intervals where there are several seeds."""

    def cell(row: dict[str, Any], field: str, digits: int) -> str:
        mean = f"{row[field]:.{digits}f}"
        if f"{field}_ci_low" not in row:
            return mean
        return f"{mean} [{row[f'{field}_ci_low']:.{digits}f}, {row[f'{field}_ci_high']:.{digits}f}]"

    lines = [f"| policy | {' | '.join(title for title, _ in _COLUMNS.values())} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for row in sorted(rows, key=lambda one: float(one["replica_hours"])):
        cells = (cell(row, field, digits) for field, (_, digits) in _COLUMNS.items())
        lines.append(f"| {row['policy']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval_of(values: list[float]) -> tuple[float, float, float]:
    """Return (mean, low, high): a 95 % confidence interval of the mean by Student's t; infinite for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -float("inf"), float("inf")
    quantile = _STUDENT[len(values) - 2] if len(values) - 2 < len(_STUDENT) else 2.0
    half = quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def thin(values: NDArray[np.float32], num_points: int = _COURSE_POINTS) -> list[float]:
    """Return means of at most `num_points` equal parts; what is left at the end of them is left out."""
    length = -(-len(values) // num_points)
    return [round(float(mean), 3) for mean in values[: len(values) // length * length].reshape(-1, length).mean(1)]


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
    rows: dict[str, dict[str, Any]],
    attainment: float,
    candidates: Sequence[str],
) -> Comparison:
    names = [baseline.name for baseline in BASELINES]
    keeping = [name for name in names if rows[name]["attainment"] >= attainment]
    notes = []
    if not keeping:
        notes.append(f"no baseline attains {attainment:.3f} on the test stretch; the closest stays on")
    best = (
        min(keeping, key=lambda name: float(rows[name]["replica_hours"]))
        if keeping
        else max(names, key=lambda name: float(rows[name]["attainment"]))
    )
    for name in candidates:
        shares = [
            (base.replica_hours - own.replica_hours) / max(base.replica_hours - oracle.replica_hours, 1e-9)
            for base, own, oracle in zip(outcomes[best], outcomes[name], outcomes[PLANNED.name], strict=True)
        ]
        keeps = bool(keeping) and rows[name]["attainment"] >= attainment
        mean, low, _ = interval_of(shares) if keeps else (0.0, 0.0, 0.0)
        rows[name] |= {"gap_closed_share": mean, "gap_closed_ci_low": low if np.isfinite(low) else None}
        rows[name]["is_better"] = keeps and low > 0
    headline: dict[str, float | int | str | None] = {
        "gap_closed_share": None,
        "gap_closed_ci_low": None,
        "slo_attainment_share": rows[best]["attainment"],
        "incumbent": best,
        "best_baseline": best,
        "best_baseline_attainment_share": rows[best]["attainment"],
        "best_baseline_replica_hours": rows[best]["replica_hours"],
        "oracle_replica_hours": rows[PLANNED.name]["replica_hours"],
        "scale": arena.scale,
        "test_hours": (arena.end_s - arena.split_s) / 3600,
        "simulated_fleet_s_per_s": arena.fleet_s_per_s,
    }
    if candidates:
        own = rows[candidates[0]]
        headline |= {
            "gap_closed_share": own["gap_closed_share"],
            "gap_closed_ci_low": own["gap_closed_ci_low"],
            "slo_attainment_share": own["attainment"],
            "incumbent": candidates[0] if own["is_better"] else best,
            "learned_replica_hours": own["replica_hours"],
        }
        if not own["is_better"]:
            reason = (
                f"it attains {own['attainment']:.4f} of the windows, {attainment:.3f} are asked"
                if own["attainment"] < attainment
                else f"it closes {own['gap_closed_share']:.3f} of the gap, low end {own['gap_closed_ci_low']}"
            )
            notes.append(f"the learned policy does not win ({reason}): {best} stays on")
    else:
        notes.append("no learned policy was given: train one with `cloudcomplete allocator train`")
    for name in candidates[1:]:
        saved = [
            other.replica_hours - own.replica_hours
            for other, own in zip(outcomes[name], outcomes[candidates[0]], strict=True)
        ]
        mean, low, _ = interval_of(saved)
        rows[name] |= {"saved_by_learned_hours": mean, "saved_ci_low": low if np.isfinite(low) else None}
    return Comparison(headline=headline, rows=list(rows.values()), notes=notes)
