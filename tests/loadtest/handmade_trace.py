"""Traces made by hand: who types what, when."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from loadtest.editing_trace import EditingTrace, Patch, apply_patches

BEGAN = datetime(2024, 5, 1, 12, 0, 0, 1000, UTC)
"""Not a whole second: times that are shown to the millisecond are kept."""


def typed(text: str, *, at: int = 0, begin_s: float = 0.0, gap_s: float = 0.1) -> list[tuple[float, list[Patch]]]:
    """Return edits that type a text key by key."""
    return [(begin_s + i * gap_s, [Patch(at + i, 0, char)]) for i, char in enumerate(text)]


def trace_of(edits: Sequence[tuple[float, list[Patch]]], *, start: str = "") -> EditingTrace:
    return EditingTrace(start, [patches for _, patches in edits], [time_s for time_s, _ in edits])


def history_of(edits: Sequence[tuple[float, list[Patch]]], *, start: str = "") -> dict[str, Any]:
    """Return the history as its file has it."""
    end = start
    for _, patches in edits:
        end = apply_patches(end, patches)
    return {
        "startContent": start,
        "endContent": end,
        "txns": [
            {"time": (BEGAN + timedelta(seconds=time_s)).isoformat(), "patches": [list(patch) for patch in patches]}
            for time_s, patches in edits
        ],
    }


def encode(history: dict[str, Any]) -> bytes:
    return json.dumps(history).encode()
