"""What a load test found, as one file between Locust's process and whoever started it. Knows no Locust.

Times come from Locust's histograms, which keep two digits above 100 ms; that is what workers can add up.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtest.errors import RunError
from loadtest.report import Number, write_json

FIRST_TEXT, WHOLE, FAILED = "first text", "whole answer", "failed"
NEVER_S = 1e6
"""Stands for a wait that never ended: longer than all others, and no figure."""
_SHARES = (0.5, 0.95, 0.99)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of figure."""

    kind: str
    name: str
    count: int
    """Failures included."""
    failures: int
    per_s: float
    p50_ms: Number
    p95_ms: Number
    p99_ms: Number
    """None where the percentile falls on something that never came."""

    def to_row(self) -> dict[str, Any]:
        """Return it as a row of a result file."""
        return msgspec.structs.asdict(self)


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one load test."""

    entries: list[Entry]
    errors: dict[str, int]
    """Why what failed did so, and how often."""
    problems: list[str]
    """Why the figures are not of the whole test; empty when they are."""

    def entry(self, kind: str, name: str) -> Entry | None:
        """Return one kind of figure; None when there was none."""
        return next((entry for entry in self.entries if (entry.kind, entry.name) == (kind, name)), None)

    def headline(self) -> dict[str, Number]:
        """Return the figures that a load test is judged by."""
        headline: dict[str, Number] = {}
        wait = self.entry("wait", FIRST_TEXT)
        keystrokes = [entry for entry in self.entries if entry.kind == "keystroke"]
        if keystrokes:
            num_keystrokes = sum(entry.count for entry in keystrokes)
            stored = sum(
                entry.count
                for entry in keystrokes
                if entry.name.startswith("answered by ") and entry.name != "answered by model"
            )
            headline["keystrokes"] = num_keystrokes
            headline["first_text_p50_ms"] = wait.p50_ms if wait else None
            headline["first_text_p95_ms"] = wait.p95_ms if wait else None
            headline["answered_without_model_share"] = stored / num_keystrokes
            headline["keystroke_failures"] = sum(entry.failures for entry in keystrokes)
        first, whole = self.entry("answer", FIRST_TEXT), self.entry("answer", WHOLE)
        failed = self.entry("answer", FAILED)
        if whole is not None or failed is not None:
            num_whole, num_failed = whole.count if whole else 0, failed.count if failed else 0
            headline["requests"] = num_whole + num_failed
            headline["answered_per_s"] = whole.per_s if whole else 0.0
            headline["request_first_text_p50_ms"] = first.p50_ms if first else None
            headline["request_first_text_p95_ms"] = first.p95_ms if first else None
            headline["request_whole_p95_ms"] = whole.p95_ms if whole else None
            headline["request_failures"] = num_failed
        return headline


def write(path: Path, stats: Any, *, problems: Sequence[str]) -> None:
    """Write Locust's statistics."""
    entries = []
    for entry in stats.entries.values():
        p50_ms, p95_ms, p99_ms = (_finite(entry.get_response_time_percentile(share)) for share in _SHARES)
        entries.append(
            Entry(
                kind=entry.method,
                name=entry.name,
                count=entry.num_requests,
                failures=entry.num_failures,
                per_s=entry.total_rps,
                p50_ms=p50_ms,
                p95_ms=p95_ms,
                p99_ms=p99_ms,
            )
        )
    errors: dict[str, int] = {}
    for error in stats.errors.values():
        name = str(error.error)
        errors[name] = errors.get(name, 0) + error.occurrences
    write_json(path, LoadResult(entries=entries, errors=errors, problems=list(problems)))


def read(path: Path) -> LoadResult:
    """Read what `write` wrote; raises RunError when a load test left nothing."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=LoadResult)
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"the load test left no figures: {error}; see what it printed above") from None


def _finite(time_ms: float | None) -> Number:
    return None if time_ms is None or time_ms >= NEVER_S * 1e3 * 0.99 else float(time_ms)
