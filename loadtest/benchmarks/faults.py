"""`bench faults` (`make chaos`): a server under load meets each fault; what was lost, and how long until it is well.

Well again means that a request which needs the model is answered. Lost are requests that were accepted and did not end
in an answer, a refusal or an error of their own. The clock is jumped by stopping the process, as a suspended machine
does.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from loadtest.benchmarks.served import Served, serving
from loadtest.load_result import FAILED, WHOLE
from loadtest.load_run import free_port
from loadtest.redis_server import PROGRAM, count_keys, running_redis
from loadtest.source_text import choose_place
from loadtest.users import Figure, ask
from server.client import AsyncClient, AsyncClientSession
from server.errors import RequestFailedError

_NUM_SESSIONS = 1000
_WELL_S = 30.0
_JUMP_S = 3.0


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Put one fault after the other to a server, and a new one where it does not survive."""
    rows: list[dict[str, Any]] = []
    headline: dict[str, float] = {}
    faults: Sequence[tuple[str, Callable[[Served], Coroutine[Any, Any, dict[str, Any]]]]] = (
        ("1,000 sessions open and idle", _idle_sessions),
        ("clients gone in mid-stream", _gone),
        ("slow readers", _slow_readers),
        ("clock jumps by 3 s", _clock_jump),
        ("SIGTERM during load", _terminated),
        ("kill -9 and restart", _killed),
    )
    for name, fault in faults:
        with serving() as served:
            asyncio.run(_well_after_s(served.address))
            row = {"fault": name, **asyncio.run(fault(served))}
        if name.startswith("kill"):
            began_s = time.monotonic()
            with serving() as served:
                asyncio.run(_well_after_s(served.address))
                row["well_after_s"] = round(time.monotonic() - began_s, 2)
        rows.append(row)
        on_progress(f"{name}: {row}")
        if "idle_sessions_mb" in row:
            headline["idle_sessions_mb"] = row["idle_sessions_mb"]
    rows.append(_shared_tier_gone())
    on_progress(f"{rows[-1]}")
    headline["lost"] = sum(row["lost"] or 0 for row in rows if not row["fault"].startswith("kill"))
    headline["well_after_max_s"] = max(row["well_after_s"] for row in rows if row["well_after_s"] is not None)
    return headline, rows


async def _idle_sessions(served: Served) -> dict[str, Any]:
    import psutil  # of the extra `loadtest`; the other benchmarks do without

    process = psutil.Process(served.pid)
    before = process.memory_info().rss
    async with AsyncClient(served.address) as client:
        place = choose_place(1, num_tokens=1500)
        sessions: list[AsyncClientSession] = []
        for number in range(_NUM_SESSIONS):
            session = client.session(session_id=f"idle-{number}", path=place.path)
            await session.open(place.before + place.after, len(place.before), is_quiet=True)
            sessions.append(session)
        await asyncio.sleep(2.0)
        grown = process.memory_info().rss - before
        well_s = await _well_after_s(served.address)
        for session in sessions:
            session.close()
    return {"lost": None, "well_after_s": well_s, "idle_sessions_mb": round(grown / 1e6, 1)}


async def _gone(served: Served) -> dict[str, Any]:
    async with AsyncClient(served.address) as client:
        for number in range(8):
            place = choose_place(number, num_tokens=600)
            stream = client.stream(place.before, place.after, max_tokens=400)
            with suppress(RequestFailedError, StopAsyncIteration):
                await anext(stream)
            await stream.aclose()
    return {"lost": None, "well_after_s": await _well_after_s(served.address)}


async def _slow_readers(served: Served) -> dict[str, Any]:
    """Readers that take a text in half a second; another client is served meanwhile."""
    ended = 0

    async def read(client: AsyncClient, number: int) -> None:
        nonlocal ended
        place = choose_place(number, num_tokens=200)
        try:
            async with client.stream(place.before, place.after, max_tokens=64) as stream:
                async for _ in stream:
                    await asyncio.sleep(0.5)
        except RequestFailedError:
            pass
        ended += 1

    async with AsyncClient(served.address) as client:
        readers = [asyncio.create_task(read(client, number)) for number in range(3)]
        await asyncio.sleep(0.5)
        well_s = await _well_after_s(served.address)
        await asyncio.gather(*readers)
    return {"lost": 3 - ended, "well_after_s": well_s}


async def _clock_jump(served: Served) -> dict[str, Any]:
    figures, asking = await _load(served.address, 4)
    os.kill(served.pid, signal.SIGSTOP)
    await asyncio.sleep(_JUMP_S)
    os.kill(served.pid, signal.SIGCONT)
    well_s = await _well_after_s(served.address)
    await asyncio.gather(*asking)
    return {"lost": 4 - _num_told(figures), "well_after_s": well_s}


async def _terminated(served: Served) -> dict[str, Any]:
    figures, asking = await _load(served.address, 4)
    await asyncio.sleep(0.1)
    os.kill(served.pid, signal.SIGTERM)
    await asyncio.sleep(0.05)
    late: list[Figure] = []
    async with AsyncClient(served.address, timeout_s=5.0) as client:
        await ask(client, choose_place(9, num_tokens=100), max_tokens=4, report=late.append)
    await asyncio.gather(*asking)
    unfinished = sum(figure.name == FAILED and "RESOURCE_EXHAUSTED" not in figure.error for figure in figures)
    return {"lost": 4 - _num_told(figures) + unfinished, "well_after_s": None, "new_ones": late[-1].error}


async def _killed(served: Served) -> dict[str, Any]:
    figures, asking = await _load(served.address, 4)
    await asyncio.sleep(0.05)
    os.kill(served.pid, signal.SIGKILL)
    await asyncio.gather(*asking)
    told = [figure.error for figure in figures if figure.name == FAILED]
    return {"lost": len(told), "well_after_s": None, "new_ones": told[0] if told else ""}


def _shared_tier_gone() -> dict[str, Any]:
    """The shared tier's server goes while requests run, and comes back empty at the same address."""
    row: dict[str, Any] = {"fault": "shared tier gone and back", "lost": None, "well_after_s": None}
    if PROGRAM is None:
        return row | {"new_ones": "not tried: redis-server is not installed"}
    port = free_port()
    shared = (f"cache.shared=redis://127.0.0.1:{port}/0",)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as redis:
        redis.enter_context(running_redis(port, Path(scratch)))
        with serving(shared) as served:
            row |= asyncio.run(_lose(served, redis))
            with running_redis(port, Path(scratch)):
                row["used_again_after_s"] = asyncio.run(_used_after_s(served.address, port))
    return row


async def _lose(served: Served, redis: ExitStack) -> dict[str, Any]:
    await _well_after_s(served.address)
    figures, asking = await _load(served.address, 4)
    await asyncio.to_thread(redis.close)
    well_s = await _well_after_s(served.address)
    await asyncio.gather(*asking)
    unfinished = sum(figure.name == FAILED for figure in figures)
    return {"lost": 4 - _num_told(figures) + unfinished, "well_after_s": well_s}


async def _used_after_s(address: str, port: int) -> float:
    """Return after how long answers are kept in the shared tier again."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < _WELL_S:
        await _well_after_s(address)
        if await asyncio.to_thread(count_keys, port):
            return round(time.monotonic() - began_s, 2)
    return float("inf")


async def _load(address: str, count: int) -> tuple[list[Figure], list["asyncio.Task[None]"]]:
    """Send some requests that take a while, and do not wait for them."""
    figures: list[Figure] = []

    async def one(number: int) -> None:
        async with AsyncClient(address) as client:
            place = choose_place(number, num_tokens=600, seed=time.monotonic_ns())
            await ask(client, place, max_tokens=200, report=figures.append)

    return figures, [asyncio.create_task(one(number)) for number in range(count)]


def _num_told(figures: Sequence[Figure]) -> int:
    """Count the requests that ended in an answer or in an error of their own."""
    return sum(figure.name in (WHOLE, FAILED) for figure in figures)


async def _well_after_s(address: str) -> float:
    """Return after how long a request that nothing has answered before is answered."""
    began_s = time.monotonic()
    async with AsyncClient(address, timeout_s=5.0) as client:
        while time.monotonic() - began_s < _WELL_S:
            place = choose_place(time.monotonic_ns() % 1_000_003, num_tokens=300)
            try:
                await client.complete(place.before, place.after, max_tokens=4)
                return round(time.monotonic() - began_s, 3)
            except RequestFailedError:
                await asyncio.sleep(0.05)
    return float("inf")
