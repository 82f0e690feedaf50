"""Flow `nightly`: the recurring work of one night, each part as a flow of its own.

A part that fails does not keep the others from running; the night fails at its end and says which. Started again on
the same date after it was killed, it does not run again what was finished.
"""

import time
from datetime import UTC, datetime
from typing import Any

import prefect

from orchestration.flows.errors import FlowError
from orchestration.flows.retrain_policy import retrain_policy
from orchestration.flows.retrain_predictor import retrain_predictor
from orchestration.flows.steps import call_flow, show_plot, show_table
from orchestration.flows.warm_cache import warm_cache
from server import plots


@prefect.flow(name="nightly")
async def nightly(
    repositories: list[str] | None = None,
    log: str = "",
    server: str = "",
    model: str = "",
    config: str = "",
    feedback: str = "",
    telemetry: list[str] | None = None,
    policy: str = "",
    steps: str = "",
    slo_ms: float = 300,
    date: str = "",
) -> dict[str, Any]:
    """Retrain the predictor, warm caches, retrain the allocator's policy; parts without their input are left out.

    `date` (empty: today's, UTC) names the night; give another name to do everything again. Raises FlowError when a part
    failed.
    """
    run_key = date or datetime.now(UTC).date().isoformat()
    parts: dict[str, tuple[Any, dict[str, Any]]] = {}
    if feedback:
        parts["retrain-predictor"] = (retrain_predictor, {"feedback": feedback, "run_key": run_key})
    if repositories or log:
        warm = {"repositories": repositories, "log": log, "server": server, "model": model, "config": config}
        parts["warm-cache"] = (warm_cache, warm | {"run_key": run_key})
    if telemetry and policy:
        learn = {"policy": policy, "telemetry": telemetry, "steps": steps, "slo_ms": slo_ms}
        parts["retrain-policy"] = (retrain_policy, learn | {"run_key": run_key})
    done: dict[str, Any] = {}
    failed: dict[str, Exception] = {}
    took_s: dict[str, float] = {}
    for name, (flow, parameters) in parts.items():
        began_s = time.monotonic()
        try:
            done[name] = await call_flow(flow, **parameters)
        except Exception as error:
            if _is_about_prefect(error):
                raise
            failed[name] = error
        took_s[name] = round(time.monotonic() - began_s, 1)
    rows = [{"part": name, "seconds": took_s[name], "outcome": str(done.get(name, failed.get(name)))} for name in parts]
    if rows:
        await show_table("nightly", rows, title=f"the night of {run_key}")
        await show_plot("nightly-seconds", plots.bars(f"The night of {run_key}", took_s, x_label="seconds"))
    if failed:
        raise FlowError(
            f"{len(failed)} of {len(parts)} parts of the night of {run_key} failed: "
            + "; ".join(f"{name}: {error}" for name, error in failed.items())
            + "; run the same command again when that is mended: finished parts are not run again"
        )
    return {"date": run_key, **done}


def _is_about_prefect(error: BaseException) -> bool:
    """Tell a failure of the ground that flows stand on from one of a part."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpcore", "prefect")
