"""`bench ablation`: what each part of the product is worth: all of it against none, and without each part in turn.

Every server has the same weights, machine and typing. A part that this version has no setting for is named in the rows
as absent. The sustained number of typists is found for all and for none.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cache.config import CacheConfig
from engine.config import EngineConfig
from loadtest.benchmarks.code_places import Place, gather_places
from loadtest.benchmarks.served import serving, typing_trace
from loadtest.benchmarks.typing_load import find_sustained, load_trace, type_once
from loadtest.dialects import Query, open_dialect
from server.config import ServerConfig

_PARTS: dict[str, Sequence[str]] = {
    "sessions": ("server.sessions=false",),
    "memory tier": ("cache.memory_bytes=1",),
    "similarity tier": ("cache.similar_entries=0",),
    "shared tier": ("cache.shared=none",),
    "prefetch": ("server.prefetch=false",),
    "drafts": ("engine.drafts=false",),
    "prefix reuse": ("engine.reuse_kv=false", "engine.prefix_store_mb=0"),
    "batching": ("engine.num_slots=1",),
    "sparse attention": ("engine.sparse=off",),
}
_LADDERS = {"all": (4, 8, 12, 16, 24), "none": (1, 2, 3, 4)}
_USERS, _KEYSTROKES = 2, 40
_PLACES = 24
_SECTIONS: dict[str, type[msgspec.Struct]] = {"server": ServerConfig, "cache": CacheConfig, "engine": EngineConfig}


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Type with each server, find how many it sustains, and compare its answers with what was written there."""
    trace = load_trace(typing_trace())
    settings = {part: usable for part, wanted in _PARTS.items() if (usable := [s for s in wanted if _exists(s)])}
    every = [setting for part in settings.values() for setting in part]
    variants: dict[str, Sequence[str]] = {"all": (), "none": every}
    variants |= {f"without {part}": part_settings for part, part_settings in settings.items()}
    [places] = gather_places(_PLACES, seed=11)
    rows: list[dict[str, Any]] = []
    for name, wanted in variants.items():
        on_progress(f"{name}: {' '.join(wanted) or 'defaults'}")
        with serving(wanted) as served:
            type_once(trace, served.address, users=1, keystrokes=5)  # the first requests of a process are slower
            found = type_once(trace, served.address, users=_USERS, keystrokes=_KEYSTROKES)
            row: dict[str, Any] = {
                "variant": name,
                "settings": " ".join(wanted),
                "first_text_p50_ms": found["first_text_p50_ms"],
                "first_text_p95_ms": found["first_text_p95_ms"],
                "on_time_share": found["on_time_share"],
                "answered_without_model_share": found["answered_without_model_share"],
            }
            if name in _LADDERS:
                row["exact_match"] = asyncio.run(_exact_match(served.address, places))
                sustained = find_sustained(trace, served.address, ladder=_LADDERS[name], on_progress=on_progress)
                row |= {"sustained_users": sustained.users, "is_sustained_bounded": sustained.is_bounded}
            rows.append(row)
            on_progress(f"  p50 {row['first_text_p50_ms']} ms, p95 {row['first_text_p95_ms']} ms")
    rows += [{"variant": f"without {part}", "settings": "absent"} for part in _PARTS if part not in settings]
    return _headline(rows), rows


def _headline(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    by_name = {row["variant"]: row for row in rows}
    whole, bare = by_name["all"], by_name["none"]
    headline: dict[str, float] = {}
    for share in ("p50", "p95"):
        if (mine := whole[f"first_text_{share}_ms"]) is not None and (theirs := bare[f"first_text_{share}_ms"]):
            headline[f"latency_{share}_cut_share"] = 1 - mine / theirs
    headline["sustained_users"] = whole["sustained_users"]
    headline["sustained_users_without"] = bare["sustained_users"]
    if bare["sustained_users"]:
        headline["sustained_users_ratio"] = whole["sustained_users"] / bare["sustained_users"]
    headline["exact_match"], headline["exact_match_without"] = whole["exact_match"], bare["exact_match"]
    for name, row in by_name.items():
        if name.startswith("without ") and row.get("first_text_p50_ms") and whole["first_text_p50_ms"]:
            part = name.removeprefix("without ").replace(" ", "_")
            headline[f"p50_without_{part}_over_all"] = row["first_text_p50_ms"] / whole["first_text_p50_ms"]
    return headline


def _exists(setting: str) -> bool:
    section, _, name = setting.partition("=")[0].partition(".")
    return name in {field.name for field in msgspec.structs.fields(_SECTIONS[section])}


async def _exact_match(address: str, places: Sequence[Place]) -> float:
    """Return the share of places whose line is completed as it was written."""
    num_exact = 0
    async with open_dialect("grpc", address) as dialect:
        for place in places:
            reply = await dialect.complete(Query(before=place.before, path="place.py", max_tokens=24), deadline_s=30.0)
            num_exact += reply.text.partition("\n")[0].strip() == place.rest_of_line.strip()
    return num_exact / len(places)
