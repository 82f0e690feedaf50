"""Faults under load, the quick ones; the long ones are `make chaos`. The engine can be computed by hand."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from loadtest.load_run import free_port
from server.client import AsyncClient, Client
from server.errors import RequestFailedError, UnavailableError
from tests.server.counting_engine import CountingEngine, expected_text
from tests.server.in_process_server import InProcessServer

COUNTING_SERVER = Path(__file__).parents[1] / "server" / "counting_server.py"
NUM_SESSIONS = 1000


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    engine = CountingEngine()
    yield engine
    engine.close(timeout_s=0)


def test_a_thousand_sessions_open_and_idle_leave_the_server_serving(engine: CountingEngine) -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            sessions = [client.session(session_id=f"idle {number}") for number in range(NUM_SESSIONS)]
            for session in sessions:
                await session.open("x = 1\n" * 50, 6, is_quiet=True)
            assert (await client.complete("x = 1", max_tokens=2)).text == expected_text("x = 1", 2)
            for session in sessions:
                session.close()

    with InProcessServer(engine) as server:
        asyncio.run(scenario(server.address))
        assert server.app.admission.num_in_flight == 0


def test_clients_gone_in_mid_stream_leave_nothing_running() -> None:
    engine = CountingEngine(is_gated=True)

    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            streams = [client.stream(f"x = {number}", max_tokens=1000) for number in range(4)]
            reading = [asyncio.create_task(anext(stream)) for stream in streams]
            await asyncio.to_thread(engine.wait_until_running, 4)
            engine.allow()
            await asyncio.gather(*reading)
            for stream in streams:
                await stream.aclose()
            await asyncio.to_thread(engine.wait_until_empty)

    with InProcessServer(engine) as server:
        asyncio.run(scenario(server.address))
    assert set(engine.ends.values()) == {"cancelled"}
    engine.close(timeout_s=0)


def test_a_reader_that_does_not_read_holds_up_nobody_else(engine: CountingEngine) -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as slow, AsyncClient(address) as quick:
            stream = slow.stream("x = 1", max_tokens=500)
            await anext(stream)  # and no further
            for number in range(20):
                assert (await quick.complete(f"y = {number}", max_tokens=1)).text == f"{number + 1} "
            await stream.aclose()

    with InProcessServer(engine) as server:
        asyncio.run(scenario(server.address))


def start(port: int, **environment: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, str(COUNTING_SERVER), "--grpc-port", str(port)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with Client(f"127.0.0.1:{port}") as client:
        client.wait_until_serving(timeout_s=60)
    return process


def test_after_kill_9_clients_are_told_and_the_next_server_answers_them() -> None:
    port = free_port()
    process = start(port, COUNTING_GATED="1")
    with Client(f"127.0.0.1:{port}") as client:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(next, client.stream("x = 1", max_tokens=4))
            time.sleep(0.3)  # the request is with the server, which never answers it
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            with pytest.raises(UnavailableError):
                reading.result(30)
        process = start(port)
        try:
            deadline_s = time.monotonic() + 30
            text = ""
            while not text and time.monotonic() < deadline_s:
                with suppress(RequestFailedError):
                    text = client.complete("x = 1", max_tokens=2).text
            assert text == expected_text("x = 1", 2)
        finally:
            process.terminate()
            assert process.wait(30) == 0
