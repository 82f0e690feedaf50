"""`bench rivals`: typing against this server and against its peers, on the same weights, machine and keystrokes.

llama.cpp's server is asked as its editor plugins ask it, with their cache in the client and without one; transformers
through a server of its own (`loadtest/peers/transformers_infill.py`). All run in turn, twice; ratios are of the medians
of each. A percentile that falls on keystrokes which never got any text is no number, and then there is no ratio. The
peers' directory is named by CLOUDCOMPLETE_PEERS (docs/peers.md).
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from engine.loader import STARTER
from loadtest.benchmarks.peers import Peers, convert
from loadtest.benchmarks.served import Served, serving, serving_llama_cpp, serving_transformers, typing_trace
from loadtest.benchmarks.typing_load import find_sustained, load_trace, type_once

_USERS, _KEYSTROKES, _ROUNDS = 1, 60, 2
_LADDER = (1, 2, 4, 8, 12, 16, 24)
_LLAMA_SLOTS = 8


class _Rival(NamedTuple):
    start: Callable[[], AbstractContextManager[Served]]
    dialect: str = "llama-infill"
    has_client_cache: bool = False


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Type with each in turn, then find how many it sustains."""
    trace = load_trace(typing_trace())
    rows: list[dict[str, Any]] = []
    sustained: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "starter.gguf"
        on_progress("converting the starter model")
        convert(Peers.from_environment(), STARTER, model, "f32")
        rivals = {
            "cloudcomplete": _Rival(serving, "grpc"),
            "llamacpp": _Rival(lambda: serving_llama_cpp(model, num_slots=_LLAMA_SLOTS), has_client_cache=True),
            "llamacpp_raw": _Rival(lambda: serving_llama_cpp(model, num_slots=_LLAMA_SLOTS)),
            "transformers": _Rival(lambda: serving_transformers(STARTER)),
        }
        for number in range(_ROUNDS):
            for name, rival in rivals.items():
                with rival.start() as served:
                    how: dict[str, Any] = {"dialect": rival.dialect, "client_cache": rival.has_client_cache}
                    type_once(trace, served.address, users=1, keystrokes=5, **how)
                    found = type_once(trace, served.address, users=_USERS, keystrokes=_KEYSTROKES, **how)
                    rows.append({"server": name, "round": number, "users": _USERS, **found})
                    on_progress(f"{name}: p50 {found['first_text_p50_ms']} ms, p95 {found['first_text_p95_ms']} ms")
                    if number == 0:
                        most = find_sustained(trace, served.address, ladder=_LADDER, on_progress=on_progress, **how)
                        sustained[name] = most.users
                        rows.append({"server": name, "sustained_users": most.users})
    headline: dict[str, Any] = {
        f"{figure}_{name}": _median(rows, name, figure)
        for name in rivals
        for figure in ("first_text_p50_ms", "first_text_p95_ms", "on_time_share")
    }
    for peer in list(rivals)[1:]:
        for share in ("p50", "p95"):
            mine, theirs = (_median(rows, name, f"first_text_{share}_ms") for name in ("cloudcomplete", peer))
            if mine is not None and theirs:
                headline[f"first_text_{share}_over_{peer}"] = mine / theirs
        if sustained[peer]:
            headline[f"sustained_users_over_{peer}"] = sustained["cloudcomplete"] / sustained[peer]
    headline |= {f"sustained_users_{name}": users for name, users in sustained.items()}
    return headline, rows


def _median(rows: list[dict[str, Any]], server: str, name: str) -> float | None:
    """Return the median over the rounds; None where some round has no number."""
    values = [row[name] for row in rows if row["server"] == server and name in row]
    return None if None in values else statistics.median(values)
