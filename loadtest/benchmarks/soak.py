"""`bench soak`: two typists for half an hour (CLOUDCOMPLETE_SOAK_S seconds); do memory and latency stay flat?

The server is new. Its first third is the warm-up in which caches fill; the last third is set against the middle one.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loadtest.benchmarks.served import serving, typing_trace
from loadtest.benchmarks.typing_load import load_trace, type_once
from loadtest.errors import RunError

_VARIABLE = "CLOUDCOMPLETE_SOAK_S"
_SECONDS = 1800.0
_USERS, _KEYSTROKES = 2, 150
_LEAST_ROUNDS = 3


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Type other stretches of the history again and again; after each, read latency and resident memory."""
    import psutil  # of the extra `loadtest`; the other benchmarks do without

    trace, length_s = load_trace(typing_trace()), _seconds()
    rows: list[dict[str, Any]] = []
    with serving() as served:
        process, began_s = psutil.Process(served.pid), time.monotonic()
        while (passed_s := time.monotonic() - began_s) < length_s or len(rows) < _LEAST_ROUNDS:
            found = type_once(trace, served.address, users=_USERS, keystrokes=_KEYSTROKES, seed=len(rows))
            rows.append(
                {
                    "after_s": round(passed_s),
                    "first_text_p50_ms": found["first_text_p50_ms"],
                    "first_text_p95_ms": found["first_text_p95_ms"],
                    "errors": found["errors"],
                    "resident_mb": round(process.memory_info().rss / 1e6, 1),
                    "open_files": process.num_fds(),
                    "threads": process.num_threads(),
                }
            )
            on_progress(f"{rows[-1]}")
    return summarise(rows) | {"seconds": time.monotonic() - began_s}, rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Set the last third of the rows against the middle one."""
    third = len(rows) // 3
    middle, last = rows[third : len(rows) - third], rows[len(rows) - third :]

    def mean(part: Sequence[dict[str, Any]], name: str) -> float:
        return float(np.mean([row[name] for row in part if row[name] is not None]))

    return {
        "resident_mb": rows[-1]["resident_mb"],
        "resident_growth_mb": mean(last, "resident_mb") - mean(middle, "resident_mb"),
        "first_text_p50_late_over_middle": mean(last, "first_text_p50_ms") / mean(middle, "first_text_p50_ms"),
        "first_text_p95_late_over_middle": mean(last, "first_text_p95_ms") / mean(middle, "first_text_p95_ms"),
        "open_files_growth": mean(last, "open_files") - mean(middle, "open_files"),
        "errors": float(sum(row["errors"] for row in rows)),
    }


def _seconds() -> float:
    named = os.environ.get(_VARIABLE, str(_SECONDS))
    try:
        return float(named)
    except ValueError:
        raise RunError(f"{_VARIABLE} is {named!r}; expected seconds, such as 1800") from None
