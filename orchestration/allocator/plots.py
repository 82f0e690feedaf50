"""What a comparison of policies looks like: costs, missed windows, and replicas over time, as SVG.

Knows a comparison's rows and courses; means stand with their 95 % confidence intervals over seeds.
"""

from collections.abc import Sequence
from typing import Any

from orchestration.allocator.evaluate import Comparison
from orchestration.allocator.oracle import PLANNED
from orchestration.allocator.policy import LEARNED
from server import plots
from server.plots import Estimate


def draw(comparison: Comparison, *, attainment: float) -> dict[str, bytes]:
    """Return the plots by name."""
    costs = _grouped(
        comparison.rows, attainment, {row["policy"]: _read(row, "replica_hours") for row in comparison.rows}
    )
    missed = {row["policy"]: _complement(_read(row, "attainment")) for row in comparison.rows}
    shown = dict.fromkeys((comparison.headline["best_baseline"], LEARNED.name, PLANNED.name))
    hours = comparison.headline.get("test_hours")
    return {
        "costs": plots.interval_bars(
            "What each policy costs on the test stretch",
            costs,
            x_label="replica-hours, mean and 95 % interval over seeds",
        ),
        "service-level": plots.interval_bars(
            "Windows in which the 95th percentile was late",
            _grouped(comparison.rows, attainment, missed),
            x_label="% of windows, mean and 95 % interval over seeds; dashed: what is allowed",
            limit=100 * (1 - attainment),
        ),
        "replicas": plots.courses(
            "Replicas over the test stretch, first seed",
            {str(name): comparison.courses[str(name)] for name in shown if name in comparison.courses},
            span=float(hours) if isinstance(hours, int | float) else 1.0,
            x_label="hours" if hours is not None else "share of the stretch",
            y_label="replicas, starting ones included",
        ),
    }


def _grouped(
    rows: Sequence[dict[str, Any]], attainment: float, values: dict[str, Estimate]
) -> dict[str, dict[str, Estimate]]:
    keeping = {row["policy"] for row in rows if row["attainment"] >= attainment}
    ordered = sorted(values, key=lambda name: values[name].mean)
    return {
        "keeps the service level": {name: values[name] for name in ordered if name in keeping},
        "does not": {name: values[name] for name in ordered if name not in keeping},
    }


def _read(row: dict[str, Any], field: str) -> Estimate:
    """Return a mean with its interval; with one seed there is none, and the mean stands alone."""
    mean = float(row[field])
    return Estimate(mean, float(row.get(f"{field}_ci_low", mean)), float(row.get(f"{field}_ci_high", mean)))


def _complement(share: Estimate) -> Estimate:
    return Estimate(*(100 * (1 - value) for value in (share.mean, share.high, share.low)))
