import socket
from collections.abc import Iterator

import msgspec
import pytest

from orchestration.allocator.errors import TelemetryError
from orchestration.allocator.telemetry import Counts, Telemetry, read_registry, read_servers
from server.client import Client
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer

ZERO = Counts(**dict.fromkeys(Counts.__struct_fields__, 0.0))
SLO_S = 0.3


def counts(**changes: float) -> Counts:
    return msgspec.structs.replace(ZERO, **changes)


def look_at(*readings: dict[str, Counts]) -> Telemetry:
    """Return telemetry whose looks are 10 s apart; the first look is taken."""
    clock, turns = iter(range(0, 1000, 10)), iter(readings)
    telemetry = Telemetry(lambda: next(turns), clock=lambda: float(next(clock)))
    assert telemetry.look() is None
    return telemetry


def test_intervals_are_what_was_counted_since_the_last_look() -> None:
    telemetry = look_at(
        {"a": counts(arrived=100, ready=1)},
        {"a": counts(arrived=150, answered=40, first_tokens=16, late=4, rejected=4, waiting=3, ready=2, warming=1)},
    )
    interval = telemetry.look()
    assert interval is not None
    live = interval.live
    assert (live.rate, live.throughput, live.waiting, live.ready, live.warming) == (5, 4, 3, 2, 1)
    assert live.late_share == pytest.approx(8 / 20)


def test_servers_that_come_start_again_and_go_leave_no_spikes() -> None:
    telemetry = look_at(
        {"a": counts(arrived=100, ready=1)},
        {"a": counts(arrived=110, ready=1), "new": counts(arrived=9000, ready=1)},
        {"a": counts(arrived=5, ready=1), "new": counts(arrived=9010, ready=1)},
        {"new": counts(arrived=9020, ready=1)},
        {},
    )
    seen = [telemetry.look() for _ in range(4)]
    assert [one and (one.arrived, one.ready) for one in seen] == [(10, 2), (10, 2), (10, 1), None]


@pytest.fixture
def server() -> Iterator[InProcessServer]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with InProcessServer(CountingEngine(), metrics_port=port) as server:
        yield server


def test_a_servers_own_metrics_are_read_here_and_over_http(server: InProcessServer) -> None:
    url = f"http://localhost:{server.app.config.metrics_port}"
    for read in (read_registry(server.app.metrics.registry, slo_s=SLO_S), read_servers([url], slo_s=SLO_S)):
        telemetry = Telemetry(read)
        assert telemetry.look() is None
        with Client(server.address) as client:
            for number in range(3):
                client.complete(f"{number}", max_tokens=3)
        interval = telemetry.look()
        assert interval is not None
        assert (interval.arrived, interval.answered, interval.first_tokens, interval.ready) == (3, 3, 3, 1)
        assert interval.generated_tokens == 9
        assert interval.prompt_tokens > 0


def test_late_ones_are_those_beyond_the_slo_by_the_histogram(server: InProcessServer) -> None:
    for seconds in (0.01, 0.26, 0.26, 2.0):
        server.app.metrics.observe_first_token(seconds)
    late = [
        read_registry(server.app.metrics.registry, slo_s=slo_s)()["here"].late for slo_s in (0.25, 0.375, 0.5, 20.0)
    ]
    assert late == [3, 2, 1, 0]


def test_a_server_that_is_gone_is_left_out_and_other_metrics_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert read_servers([f"http://127.0.0.1:{port}"], slo_s=SLO_S)() == {}
    assert f"no metrics from 127.0.0.1:{port}" in caplog.text
    with pytest.raises(TelemetryError, match=r"'127.0.0.1:9' is no address of metrics; expected http://HOST:PORT"):
        read_servers(["127.0.0.1:9"], slo_s=SLO_S)
