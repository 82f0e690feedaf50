"""A server's life: port, loading, health, draining, signals; in this process and as a process of its own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server import app
from server.answers import Answers
from server.client import Client
from server.config import ServerConfig
from server.errors import BusyError, DeadlineError, StartError, UnavailableError
from tests.server.counting_engine import WAIT_S, CountingEngine
from tests.server.in_process_server import InProcessServer

COUNTING_SERVER = [sys.executable, str(Path(__file__).with_name("counting_server.py"))]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def counting_server(tmp_path: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of `serve` on a port of its own, its port open; killed if the test leaves it running."""
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [*COUNTING_SERVER, "--grpc-port", "0", "--port-file", str(port_file), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    with process:
        try:
            deadline_s = time.monotonic() + WAIT_S
            while not port_file.exists() and process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.005)
            yield process, f"127.0.0.1:{port_file.read_text().strip()}" if port_file.exists() else ""
        finally:
            process.kill()


def statuses(address: str) -> dict[str, int]:
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        return {
            name: health.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status
            for name in ("", "cloudcomplete.v1.CompletionService")
        }


def test_health_says_serving_only_between_opening_and_draining() -> None:
    engine = CountingEngine(is_gated=True)
    with InProcessServer(None) as server, Client(server.address) as client:
        assert set(statuses(server.address).values()) == {NOT_SERVING}
        server.call(server.open_engine(engine))
        assert set(statuses(server.address).values()) == {SERVING}
        stream = client.stream("7", max_tokens=1)
        reading = threading.Thread(target=lambda: list(stream))
        reading.start()
        engine.wait_until_running(1)
        stopping = server.begin(server.stop(drain_s=WAIT_S))
        while SERVING in statuses(server.address).values():
            pass
        with pytest.raises(UnavailableError, match="the server is draining and takes no new requests"):
            client.complete("8")
        engine.allow()
        reading.join()
        assert stream.completion is not None
        assert stopping.result(WAIT_S)
    assert engine.is_closed


def test_health_tells_of_parts_that_the_server_can_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    async def status(server: InProcessServer, name: str, wanted: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while server.app.health._server_status.get(name) != wanted:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)

    with InProcessServer(CountingEngine()) as server, Client(server.address) as client:
        watching = server.begin(app.watch_parts(server.app, every_s=0.005))
        server.call(status(server, app.CACHE_NAME, SERVING))
        problem = "the store: gone; the cache goes on without it and tries again"
        with monkeypatch.context() as gone:
            gone.setattr(Answers, "health", property(lambda _: problem))
            server.call(status(server, app.CACHE_NAME, NOT_SERVING))
            assert set(statuses(server.address).values()) == {SERVING}
            assert client.complete("7", max_tokens=1).text == "8 "
        server.call(status(server, app.CACHE_NAME, SERVING))
        watching.cancel()


def test_a_stream_that_outlasts_the_draining_is_told_so() -> None:
    engine = CountingEngine(is_gated=True)
    with InProcessServer(engine, drain_s=0.05) as server, Client(server.address) as client:
        stream = client.stream("7", max_tokens=9)
        engine.allow()
        assert next(stream) == "8 "
        stopping = server.begin(server.stop(drain_s=0.05))
        with pytest.raises(UnavailableError, match=r"the server stopped after draining for 0\.05 s"):
            next(stream)
        assert not stopping.result(WAIT_S)
    assert list(engine.ends.values()) == ["failed"]


def test_a_port_in_use_is_named_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def start() -> None:
            built = await app.build(ServerConfig(grpc_port=port))
            await app.start(built)

        with pytest.raises(StartError) as raised:
            asyncio.run(start())
    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; expected a free port of this machine; "
        "stop what uses it, or choose another with --grpc-port (0 takes a free one)"
    )


def test_two_servers_never_share_a_port() -> None:
    engine = CountingEngine()
    with InProcessServer(engine) as first, pytest.raises(StartError, match="Address already in use"):
        InProcessServer(engine, grpc_port=int(first.address.split(":")[1])).__enter__()


def test_a_port_that_is_taken_at_the_last_moment_is_refused_by_grpc_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_check_address", lambda host, port, remedy: None)
    engine = CountingEngine()
    with InProcessServer(engine) as first, pytest.raises(StartError) as raised:
        InProcessServer(engine, grpc_port=int(first.address.split(":")[1])).__enter__()
    assert str(raised.value).startswith(f"cannot listen on {first.address}: ")
    assert str(raised.value).endswith("; choose another host or port")


def test_a_host_that_does_not_exist_is_named() -> None:
    async def start() -> None:
        await app.start(await app.build(ServerConfig(host="no such host")))

    with pytest.raises(StartError, match="cannot resolve the host 'no such host'"):
        asyncio.run(start())


def test_a_request_during_loading_is_told_how_far_it_is_and_then_served(tmp_path: Path) -> None:
    with counting_server(tmp_path, COUNTING_LOAD_S="0.6") as (process, address), Client(address) as client:
        with pytest.raises(UnavailableError, match=r"the server is still starting \(.*\); try again in a few seconds"):
            client.complete("7")
        assert set(statuses(address).values()) == {NOT_SERVING}
        client.wait_until_serving(timeout_s=WAIT_S)
        assert client.complete("7", max_tokens=2).text == "8 9 "
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert err == ""
    assert out.splitlines() == [
        f"listening on {address}",
        "loading JAX",
        "learning to count",
        "serving",
        "draining: 0 in flight, at most 10 s",
        "stopped",
    ]
    assert not (tmp_path / "port").exists()


def test_the_first_signal_lets_running_streams_end_and_leaves_with_code_0(tmp_path: Path) -> None:
    with (
        counting_server(tmp_path, "--set", "server.chunk_interval_s=0") as (process, address),
        Client(address) as client,
    ):
        client.wait_until_serving(timeout_s=WAIT_S)
        stream = client.stream("7", max_tokens=1000)
        texts = [next(stream)]
        process.send_signal(signal.SIGINT)
        texts += stream
        assert len(texts) == 1000
        assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_leaves_at_once(tmp_path: Path, number: signal.Signals) -> None:
    options = ("--set", "server.drain_s=60", "--set", "server.max_in_flight=1")
    with (
        counting_server(tmp_path, *options, COUNTING_GATED="1") as (process, address),
        Client(address) as client,
    ):
        client.wait_until_serving(timeout_s=WAIT_S)
        reading = threading.Thread(target=_read_until_unavailable, args=(client,))
        reading.start()
        _wait_until_full(client)
        process.send_signal(number)
        assert process.stdout is not None
        assert "draining: 1 in flight, at most 60 s\n" in iter(process.stdout.readline, "")
        process.send_signal(number)
        assert process.wait(WAIT_S) == 128 + number
        reading.join()


def _read_until_unavailable(client: Client) -> None:
    with suppress(UnavailableError):
        while True:
            with suppress(BusyError):  # the place is taken for a moment by `_wait_until_full`
                client.complete("7", timeout_s=WAIT_S)


def _wait_until_full(client: Client) -> None:
    """Ask until the server says that its one place is taken; what got the place instead runs into its deadline."""
    for _ in range(100):
        try:
            client.complete("8", timeout_s=0.05)
        except BusyError:
            return
        except DeadlineError:
            continue
    raise AssertionError("the other request never arrived")


def test_a_signal_while_loading_leaves_at_once_with_code_0(tmp_path: Path) -> None:
    with counting_server(tmp_path, COUNTING_LOAD_S="60") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_loading_that_fails_is_one_line_and_code_1(tmp_path: Path) -> None:
    message = "model.safetensors is truncated; expected 9 bytes, got 3; download it again"
    with counting_server(tmp_path, COUNTING_LOAD_ERROR=message) as (process, _):
        _, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, err) == (1, f"cloudcomplete: {message}\n")


def test_an_engine_that_ends_by_itself_takes_the_server_with_it_though_nobody_asks(tmp_path: Path) -> None:
    with counting_server(tmp_path, COUNTING_DIES="1") as (process, _):
        _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert err == "cloudcomplete: the engine ended by itself; see its error above; start the server again\n"


def test_a_port_in_use_is_one_line_and_code_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COUNTING_SERVER, "--grpc-port", port], capture_output=True, text=True, timeout=WAIT_S, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"cloudcomplete: cannot listen on 127.0.0.1:{port}: Address already in use; ")
    assert done.stderr.count("\n") == 1


def test_a_port_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "port"
    done = subprocess.run(
        [*COUNTING_SERVER, "--grpc-port", "0", "--port-file", str(missing)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"cloudcomplete: cannot write the port to {missing}: No such file or directory; expected a writable place\n"
    )


def test_a_server_whose_lines_nobody_reads_any_more_goes_on(tmp_path: Path) -> None:
    with counting_server(tmp_path, COUNTING_LOAD_S="0.1") as (process, address), Client(address) as client:
        assert process.stdout is not None
        process.stdout.close()
        client.wait_until_serving(timeout_s=WAIT_S)
        assert client.complete("7", max_tokens=1).text == "8 "
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_a_server_started_for_a_program_stops_when_its_input_closes(tmp_path: Path) -> None:
    with counting_server(tmp_path, "--stop-at-eof") as (process, address), Client(address) as client:
        client.wait_until_serving(timeout_s=WAIT_S)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
