"""Flow `retrain-policy`: learn from what a fleet lived through how many replicas to run; promote what costs less.

Telemetry (`allocator.telemetry` of servers) or a recorded trace becomes traffic, the simulator is fitted to it, a
policy is trained on the first 60 % of the time and judged on the rest, against the promoted one and every baseline, at
the service level. Each step leaves its files in a folder beside the policy, named by the night, so that a run that was
stopped goes on at the step where it was.
"""

from pathlib import Path
from typing import Any

import msgspec
import prefect

from orchestration.flows.errors import FlowInputError
from orchestration.flows.steps import show_plot, show_report, show_table, step

_TRACE, _FIT, _CANDIDATE, _COMPARISON = "trace.csv", "fit.json", "candidate", "comparison.json"
REPORT_NAME = "report.md"


@prefect.flow(name="retrain-policy")
async def retrain_policy(
    policy: str,
    telemetry: list[str] | None = None,
    trace: str = "",
    steps: str = "",
    replicas: int = 0,
    attainment: float = 0.99,
    slo_ms: float = 300,
    cold_start_s: int = 40,
    max_replicas: int = 24,
    budget_s: float = 120,
    seeds: int = 5,
    run_key: str = "",
) -> dict[str, Any]:
    """Train on `telemetry` files, or on a `trace`, and put what is better in the place of `policy` (a directory).

    `steps`: a JSON file of measured step times. `replicas`: scale the traffic so that the best static size is so many;
    0: as it was. `budget_s`: time for PPO. The outcome is `promoted`, `kept`, or `retired`: then the promoted policy
    was no better than a baseline any more and was moved aside. Raises FlowInputError, AllocatorError.
    """
    if bool(telemetry) == bool(trace):
        raise FlowInputError("retrain-policy got both or neither of telemetry and trace; expected one of them")
    work = _folder(policy, run_key)
    fleet = {"slo_ms": slo_ms, "cold_start_s": cold_start_s, "max_replicas": max_replicas}
    collected = await collect_traffic(work, telemetry or [], trace, run_key=run_key)
    fitted = await refit_simulator(work, steps, fleet, replicas, attainment, run_key=run_key)
    trained = await train_policy(work, fleet, fitted["scale"], attainment, budget_s, run_key=run_key)
    judged = await evaluate_policy(work, policy, fleet, fitted["scale"], attainment, seeds, run_key=run_key)
    await promote_policy(work, policy, judged["verdict"], run_key=run_key)
    await show_table("policies", judged["rows"], title=f"{judged['verdict']}: {judged['reason']}")
    await show_report("retrain-policy", judged["report"])
    for name, svg in _read_plots(work, judged.get("plots", [])).items():
        await show_plot(f"policies-{name}", svg)
    return {
        "verdict": judged["verdict"],
        "reason": judged["reason"],
        "report": str(Path(work) / REPORT_NAME),
        **collected,
        **fitted,
        **trained,
        **judged["headline"],
    }


@step(timeout_s=900, is_kept=True)
def collect_traffic(work: str, telemetry: list[str], trace: str, *, run_key: str) -> dict[str, Any]:
    """Make one trace of what was recorded, and the mean request of it."""
    from orchestration.allocator.refit import Fit, refit
    from orchestration.allocator.service import Workload
    from orchestration.allocator.telemetry import Interval
    from orchestration.allocator.traces import read_trace
    from server.record_file import read_records

    del run_key
    folder = Path(work)
    folder.mkdir(parents=True, exist_ok=True)
    if trace:
        read = read_trace(Path(trace).expanduser())
        (folder / _TRACE).write_bytes(Path(trace).expanduser().read_bytes())
        requests = float(read.rates.sum() * read.window_s)
        fit = Fit(
            workload=Workload(), hours=read.duration_s / 3600, measured_share=1.0, requests=requests, late_share=0.0
        )
    else:
        intervals: list[Interval] = []
        for name in telemetry:
            path = Path(name).expanduser()
            if not path.is_file():
                raise FlowInputError(
                    f"there is no telemetry {name}; expected the file that allocator.telemetry names; start servers "
                    "with --allocator watch --set allocator.telemetry=FILE"
                )
            intervals += read_records(path, Interval)
        fit = refit(intervals, folder / _TRACE)
    (folder / _FIT).write_bytes(msgspec.json.encode(fit))
    return {key: value for key, value in msgspec.to_builtins(fit).items() if key != "workload"}


@step(timeout_s=1800, is_heavy=True, is_kept=True)
def refit_simulator(
    work: str, steps: str, fleet: dict[str, Any], replicas: int, attainment: float, *, run_key: str
) -> dict[str, Any]:
    """Join step times with the mean request, and scale the traffic."""
    from orchestration.allocator.service import read_steps

    del run_key
    folder = Path(work)
    measured = read_steps(Path(steps).expanduser() if steps else None)
    (folder / "steps.json").write_bytes(msgspec.json.encode(measured))
    arena = _arena(folder, fleet, 1.0)
    if replicas:
        arena.fit_scale(replicas, attainment)
    return {"scale": arena.scale, "capacity_per_s": float(arena.service.capacity)}


@step(timeout_s=3600, is_heavy=True, is_kept=True)
def train_policy(
    work: str, fleet: dict[str, Any], scale: float, attainment: float, budget_s: float, *, run_key: str
) -> dict[str, Any]:
    """Imitate the oracle, improve by PPO, and keep of both what is better on windows that neither was trained on."""
    from orchestration.allocator import checkpoint, retraining

    del run_key
    outcome = retraining.train(_arena(Path(work), fleet, scale), attainment=attainment, budget_s=budget_s)
    checkpoint.save(outcome.weights, Path(work) / _CANDIDATE)
    return outcome.headline


@step(timeout_s=3600, is_heavy=True, is_kept=True)
def evaluate_policy(
    work: str, policy: str, fleet: dict[str, Any], scale: float, attainment: float, seeds: int, *, run_key: str
) -> dict[str, Any]:
    """Compare on held-out windows with the promoted policy and every baseline; write the report and its plots."""
    from orchestration.allocator import checkpoint, plots, retraining
    from orchestration.allocator.errors import CheckpointError
    from orchestration.allocator.evaluate import tabulate

    del run_key
    folder = Path(work)
    try:
        incumbent = checkpoint.load(Path(policy).expanduser())
    except CheckpointError:  # none yet, or one that no controller of this version would read either
        incumbent = None
    comparison = retraining.evaluate(
        _arena(folder, fleet, scale),
        checkpoint.load(folder / _CANDIDATE),
        incumbent=incumbent,
        attainment=attainment,
        num_seeds=seeds,
    )
    verdict, reason = retraining.judge(comparison)
    (folder / _COMPARISON).write_bytes(msgspec.json.format(msgspec.json.encode(comparison)))
    drawn = plots.draw(comparison, attainment=attainment)
    for name, svg in drawn.items():
        (folder / f"{name}.svg").write_bytes(svg)
    report = f"# Policy: {verdict}\n\nBecause {reason}.\n\n{tabulate(comparison.rows)}\n"
    pictures = "\n".join(f"![{name}]({name}.svg)\n" for name in drawn)
    (folder / REPORT_NAME).write_text(f"{report}\n{pictures}", "utf-8")
    kept = ("policy", "replica_hours", "attainment", "p95_s", "p99_s", "dropped", "changes_per_hour")
    rows = [{key: row[key] for key in kept} for row in comparison.rows]
    return {
        "verdict": verdict,
        "reason": reason,
        "rows": rows,
        "report": report,
        "plots": list(drawn),
        "headline": comparison.headline,
    }


@step(timeout_s=300, is_kept=True)
def promote_policy(work: str, policy: str, verdict: Any, *, run_key: str) -> str:
    """Put the new policy where controllers look, or take a promoted one away, or do nothing."""
    from orchestration.allocator import retraining

    del run_key
    place = Path(policy).expanduser().absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    retraining.act(verdict, Path(work) / _CANDIDATE, place)
    return str(verdict)


def _read_plots(work: str, names: list[str]) -> dict[str, bytes]:
    """Return the plots that an earlier run may have drawn; a file that was removed since is left out."""
    files = {name: Path(work) / f"{name}.svg" for name in names}
    return {name: file.read_bytes() for name, file in files.items() if file.exists()}


def _folder(policy: str, run_key: str) -> str:
    """Return where the steps of one night leave their files."""
    place = Path(policy).expanduser().absolute()
    return str(place.parent / f"{place.name}.retraining" / (run_key or "latest"))


def _arena(folder: Path, fleet: dict[str, Any], scale: float) -> Any:
    """Return the simulator as it was fitted."""
    from orchestration.allocator import retraining
    from orchestration.allocator.refit import Fit
    from orchestration.allocator.service import read_steps

    rules = retraining.rules_of(slo_s=fleet["slo_ms"] / 1e3, cold_start_s=fleet["cold_start_s"])
    arena = retraining.prepare(
        folder / _TRACE,
        rules=msgspec.structs.replace(rules, max_replicas=fleet["max_replicas"]),
        replicas=0,
        steps=read_steps(folder / "steps.json"),
        workload=msgspec.json.decode((folder / _FIT).read_bytes(), type=Fit).workload,
    )
    arena.scale = scale
    return arena
