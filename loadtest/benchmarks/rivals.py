"""`bench rivals`: typing against this server and against llama.cpp's, on the same weights, machine and keystrokes.

llama.cpp's server is asked through the dialect llama-infill, with the cache of its editor plugins. Both run in turn,
twice; ratios are of the medians of each. The peers' directory is named by CLOUDCOMPLETE_PEERS (docs/peers.md).
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from engine.loader import STARTER
from loadtest.benchmarks.peers import Peers, convert
from loadtest.benchmarks.served import Served, serving, serving_llama_cpp, typing_trace
from loadtest.benchmarks.typing_load import find_sustained, load_trace, type_once

_USERS, _KEYSTROKES, _ROUNDS = 1, 60, 2
_LADDER = (2, 4, 8, 12, 16, 24)
_LLAMA_SLOTS = 8


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Type with both in turn, then find how many each sustains."""
    trace = load_trace(typing_trace())
    rows: list[dict[str, Any]] = []
    sustained: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "starter.gguf"
        on_progress("converting the starter model")
        convert(Peers.from_environment(), STARTER, model, "f32")
        servers: dict[str, tuple[Callable[[], AbstractContextManager[Served]], str]] = {
            "cloudcomplete": (serving, "grpc"),
            "llama.cpp": (lambda: serving_llama_cpp(model, num_slots=_LLAMA_SLOTS), "llama-infill"),
        }
        for number in range(_ROUNDS):
            for name, (start, dialect) in servers.items():
                with start() as served:
                    is_llama = dialect != "grpc"

                    def type_some(users: int, keystrokes: int, served: Served = served, dialect: str = dialect) -> Any:
                        return type_once(
                            trace,
                            served.address,
                            users=users,
                            keystrokes=keystrokes,
                            dialect=dialect,
                            client_cache=dialect != "grpc",
                        )

                    type_some(1, 5)
                    found = type_some(_USERS, _KEYSTROKES)
                    rows.append({"server": name, "round": number, "users": _USERS, **found})
                    on_progress(f"{name}: p50 {found['first_text_p50_ms']} ms, p95 {found['first_text_p95_ms']} ms")
                    if number == 0:
                        sustained[name] = find_sustained(
                            trace,
                            served.address,
                            ladder=_LADDER,
                            on_progress=on_progress,
                            dialect=dialect,
                            client_cache=is_llama,
                        ).users
                        rows.append({"server": name, "sustained_users": sustained[name]})
    headline: dict[str, float] = {}
    for share in ("p50", "p95"):
        mine, theirs = (_median(rows, name, f"first_text_{share}_ms") for name in servers)
        if mine is not None and theirs:
            headline[f"first_text_{share}_over_llamacpp"] = mine / theirs
    headline |= {f"sustained_users_{name.replace('.', '')}": users for name, users in sustained.items()}
    if sustained["llama.cpp"]:
        headline["sustained_users_over_llamacpp"] = sustained["cloudcomplete"] / sustained["llama.cpp"]
    return headline, rows


def _median(rows: list[dict[str, Any]], server: str, name: str) -> float | None:
    values = [row[name] for row in rows if row["server"] == server and row.get(name) is not None]
    return statistics.median(values) if values else None
