"""`bench bursts`: a production trace's arrivals at 1, 2 and 5 times their pace, and overload against no load.

Goodput is what was answered within the SLO (first text within 0.3 s), of all that was sent. What is refused is told at
once; of what is admitted, the 95th percentile is set against that of requests sent one after the other.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtest.benchmarks.served import serving
from loadtest.errors import RunError
from loadtest.load_result import FAILED, FIRST_TEXT, WHOLE
from loadtest.outcomes import percentile
from loadtest.source_text import choose_place
from loadtest.users import BurstUser, Figure, UserSettings, ask
from server.client import AsyncClient

_VARIABLE = "CLOUDCOMPLETE_ARRIVALS"
_RATES = (1.0, 2.0, 5.0)
_SECONDS = 20.0
_SLO_S = 0.3
_NUM_ALONE = 40
_MAX_TOKENS, _PROMPT_TOKENS = 24, 700
_OVERLOAD = 5.0


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Send the trace at each pace; then requests alone, and five times as many as can be served."""
    headline: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with serving() as served:
        for rate in _RATES:
            settings = UserSettings(
                address=served.address, duration_s=_SECONDS, arrivals=str(_arrivals()), rate=rate, timeout_s=30.0
            )
            row = {"case": f"trace at {rate:g} times its pace", **_sum_up(asyncio.run(_replay(settings)))}
            rows.append(row)
            headline[f"goodput_{rate:g}x_share"] = row["goodput_share"]
            headline[f"rejected_{rate:g}x_share"] = row["rejected_share"]
            on_progress(f"{row['case']}: {row['requests']} requests, goodput {row['goodput_share']:.2f}")
        alone = asyncio.run(_alone(served.address))
        per_s = _OVERLOAD / (sum(figure.seconds for figure in alone if figure.name == WHOLE) / _NUM_ALONE)
        rows.append({"case": "one after the other", **_sum_up(alone)})
        for seconds, case in ((8.0, "overload begins"), (_SECONDS, f"{_OVERLOAD:g} times what one at a time allows")):
            rows.append({"case": case, **_sum_up(asyncio.run(_flood(served.address, per_s=per_s, seconds=seconds)))})
            on_progress(f"{case}: {rows[-1]}")
        again = asyncio.run(_alone(served.address))
        rows.append({"case": "afterwards", **_sum_up(again)})
    by_case = {row["case"]: row for row in rows}
    calm, busy = by_case["one after the other"], rows[-2]
    headline["overload_rejected_share"] = busy["rejected_share"]
    for name in ("first_text_p95_ms", "whole_p95_ms"):
        if busy[name] and calm[name]:
            headline[f"overload_{name.removesuffix('_ms')}_over_unloaded"] = busy[name] / calm[name]
    return headline, rows


async def _replay(settings: UserSettings) -> list[Figure]:
    figures: list[Figure] = []
    async with AsyncClient(settings.address, timeout_s=settings.timeout_s) as client:
        await BurstUser(client, settings, 0, figures.append).run()
    return figures


async def _alone(address: str) -> list[Figure]:
    figures: list[Figure] = []
    async with AsyncClient(address) as client:
        for number in range(_NUM_ALONE):
            place = choose_place(number, num_tokens=_PROMPT_TOKENS, seed=id(figures))
            await ask(client, place, max_tokens=_MAX_TOKENS, report=figures.append)
    return figures


async def _flood(address: str, *, per_s: float, seconds: float) -> list[Figure]:
    figures: list[Figure] = []
    async with AsyncClient(address) as client, asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number in range(round(per_s * seconds)):
            await asyncio.sleep(max(0.0, began_s + number / per_s - loop.time()))
            place = choose_place(number, num_tokens=_PROMPT_TOKENS, seed=id(figures))
            tasks.create_task(ask(client, place, max_tokens=_MAX_TOKENS, report=figures.append))
    return figures


def _sum_up(figures: Sequence[Figure]) -> dict[str, Any]:
    first_s = sorted(figure.seconds for figure in figures if figure.name == FIRST_TEXT)
    whole_s = sorted(figure.seconds for figure in figures if figure.name == WHOLE)
    num_rejected = sum("RESOURCE_EXHAUSTED" in figure.error for figure in figures)
    num_failed = sum(figure.name == FAILED for figure in figures) - num_rejected
    num_requests = len(whole_s) + num_rejected + num_failed
    return {
        "requests": num_requests,
        "goodput_share": sum(seconds <= _SLO_S for seconds in first_s) / max(1, num_requests),
        "rejected_share": num_rejected / max(1, num_requests),
        "failed": num_failed,
        "first_text_p50_ms": _ms(percentile(first_s, 0.5)),
        "first_text_p95_ms": _ms(percentile(first_s, 0.95)),
        "whole_p95_ms": _ms(percentile(whole_s, 0.95)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)


def _arrivals() -> Path:
    named = os.environ.get(_VARIABLE)
    beside = Path(__file__).parents[3] / "shared/data/azure-llm-code/trace.csv"
    if (path := Path(named) if named else beside).exists():
        return path
    raise RunError(f"there is no trace of requests at {path}; expected one: name it in {_VARIABLE}")
