"""What benchmarks of typing measure alike: a replay's latencies, and how many typists a server sustains."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest.dialects import open_dialect
from loadtest.outcomes import summarise
from loadtest.replay import Replay, ReplaySettings
from loadtest.report import Number
from loadtest.traces import Trace, read_trace

MAX_TOKENS = 32
SLO_MS = 300.0
"""A number of typists is sustained when their 95th percentile of the time to first text is at most this."""
_KEYSTROKES = 25


class Sustained(NamedTuple):
    """How many typists were sustained."""

    users: int
    """0: not even one."""
    is_bounded: bool
    """Whether the next larger number was tried and was too much."""
    p95_ms: dict[int, Number]


def load_trace(path: Path) -> Trace:
    """Read the history that is typed."""
    return read_trace(path, seed=0)


def type_once(
    trace: Trace,
    address: str,
    *,
    users: int,
    keystrokes: int,
    seed: int = 0,
    dialect: str = "grpc",
    client_cache: bool = False,
) -> dict[str, Number]:
    """Replay once, and return the headline; `seed` decides which stretches are typed."""

    async def run() -> dict[str, Number]:
        replay = Replay(
            trace,
            ReplaySettings(users=users, keystrokes=keystrokes, max_tokens=MAX_TOKENS, path="C.svelte", seed=seed),
        )
        async with open_dialect(dialect, address, has_client_cache=client_cache) as opened:
            await replay.run(opened)
        return summarise(replay.outcomes, users=users)

    return asyncio.run(run())


def find_sustained(
    trace: Trace,
    address: str,
    *,
    ladder: Sequence[int],
    on_progress: Callable[[str], None],
    dialect: str = "grpc",
    client_cache: bool = False,
) -> Sustained:
    """Let more and more type until they wait too long."""
    most, p95_ms = 0, dict[int, Number]()
    for users in ladder:
        found = type_once(
            trace, address, users=users, keystrokes=_KEYSTROKES, dialect=dialect, client_cache=client_cache
        )
        p95 = p95_ms[users] = found["first_text_p95_ms"]
        on_progress(f"  {users} typists: first text p95 {'never' if p95 is None else f'{p95:.0f} ms'}")
        if p95 is None or p95 > SLO_MS:
            return Sustained(most, True, p95_ms)
        most = users
    return Sustained(most, False, p95_ms)
