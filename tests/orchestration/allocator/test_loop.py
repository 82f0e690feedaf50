"""The loop, its settings, and the whole of it: real servers whose replicas come and go while requests are open."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import msgspec
import pytest

from cloudcomplete.own_server import OwnServer, serve_command
from orchestration.allocator.config import AllocatorConfig
from orchestration.allocator.errors import AllocatorError, TelemetryError
from orchestration.allocator.loop import AllocationLoop, make_controller
from orchestration.allocator.scaler import METRIC
from orchestration.allocator.telemetry import Counts, Interval, Telemetry
from orchestration.proto import externalscaler_pb2 as pb
from orchestration.proto import externalscaler_pb2_grpc as pb_grpc
from server.client import Client
from server.record_file import read_records

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "tests" / "fixtures" / "models" / "tiny-llama"
BASE = {"keep": 0.0, "margin": 0.2, "gain": 0.0, "hold": 0.0}
CONFIG = AllocatorConfig(mode="shadow", capacity=20.0, cooldown_intervals=0, max_replicas=8, **BASE)
ZERO = Counts(**dict.fromkeys(Counts.__struct_fields__, 0.0))
COUNTING = [sys.executable, str(ROOT / "tests" / "server" / "counting_server.py")]


class Fleet:
    """Servers whose arrivals a test sets, and what was made of their number."""

    def __init__(self) -> None:
        self.counts, self.applied, self.time_s = msgspec.structs.replace(ZERO, ready=2.0), list[int](), 0.0

    def come(self, requests: float, **gauges: float) -> None:
        self.counts = msgspec.structs.replace(self.counts, arrived=self.counts.arrived + requests, **gauges)
        self.time_s += 10

    def apply(self, target: int) -> None:
        self.applied.append(target)

    def loop(self, config: AllocatorConfig) -> AllocationLoop:
        telemetry = Telemetry(lambda: {"a": self.counts}, clock=lambda: self.time_s)
        telemetry.look()
        return AllocationLoop(config, make_controller(config, replicas=2), telemetry, self)


def test_a_round_looks_decides_acts_and_is_recorded(tmp_path: Path) -> None:
    fleet = Fleet()
    path = tmp_path / "telemetry" / "allocator.jsonl"
    loop = fleet.loop(msgspec.structs.replace(CONFIG, telemetry=str(path)))
    fleet.come(800)
    assert loop.round().target == 6
    fleet.come(10, ready=6.0)
    loop.round()
    assert fleet.applied == [6, 5]
    assert [(one.arrived, one.time_s) for one in read_records(path, Interval)] == [(800, 10), (10, 20)]


def test_what_was_asked_for_and_is_not_seen_yet_is_warming_but_not_for_ever() -> None:
    fleet = Fleet()
    loop = fleet.loop(msgspec.structs.replace(CONFIG, cold_start_s=1))
    fleet.come(800)
    assert loop.round().target == 6
    fleet.come(1)
    assert loop.round().target == 6, "two serve, four start: none is given up"
    loop._raised_s -= 4
    fleet.come(1)
    assert loop.round().target == 1


def test_watching_changes_nothing_and_a_failing_round_does_not_end_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = Fleet()
    watching = fleet.loop(msgspec.structs.replace(CONFIG, mode="watch"))
    fleet.come(800)
    assert watching.round().target == 6
    assert fleet.applied == []
    loop = fleet.loop(CONFIG)
    loop._config = msgspec.structs.replace(CONFIG, interval_s=0)
    failing = iter([OSError("no route")])
    done = threading.Event()

    def apply(target: int) -> None:
        for error in failing:
            raise error
        fleet.applied.append(target)
        done.set()

    fleet.apply = apply  # type: ignore[method-assign]
    with loop:
        assert done.wait(30)
    assert "this round of the allocator failed; the fleet stays as it is" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, r"min_replicas is 3 and max_replicas 2; expected at least 1"),
        ({"interval_s": 0}, r"allocator.interval_s is 0; expected a time above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(AllocatorError, match=message):
        make_controller(msgspec.structs.replace(CONFIG, **changes), replicas=1)


def test_step_times_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text('{"row": 1}')
    with pytest.raises(TelemetryError, match="cannot read step times from"):
        make_controller(AllocatorConfig(steps=str(tmp_path / "steps.json")), replicas=1)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s, f"not within 60 s: {what}"
        time.sleep(0.05)


@pytest.mark.long
def test_no_request_of_a_bursty_trace_is_lost_while_replicas_come_and_go(tmp_path: Path) -> None:
    """`cloudcomplete serve --allocator shadow` on a tiny model: bursts need three replicas, the calm after them one."""
    record = tmp_path / "telemetry.jsonl"
    settings = "interval_s=1 cold_start_s=1 capacity=8 margin=0 keep=0 hold=0 max_replicas=3 cooldown_intervals=0"
    settings = " ".join(f"allocator.{setting}" for setting in settings.split()) + f" allocator.telemetry={record}"
    # Few programs to compile; what is known already is no work; none is refused for being slow: a failure is a loss.
    settings += " engine.max_context=128 engine.num_slots=2 engine.drafts=false engine.prefix_store_mb=0"
    settings += " engine.max_slowdown=0 cache.is_enabled=false server.prefetch=false"
    options = [str(MODEL), "--allocator", "shadow", *(word for one in settings.split() for word in ("--set", one))]
    states: list[tuple[float, float]] = []

    def note_states() -> bool:
        intervals = list(read_records(record, Interval))
        states[:] = [(one.ready, one.warming) for one in intervals]
        return bool(states)

    ended: list[str] = []
    failed: list[str] = []

    def ask(number: int, pause_s: float, stopping: threading.Event) -> None:
        with Client(server.address) as client:
            while not stopping.wait(pause_s):
                try:
                    text = f"# {len(ended)} {time.monotonic_ns()}\ndef f("  # never the same: what is known is no work
                    answer = client.complete(text, session_id=f"s{number}", max_tokens=8)
                    ended.append(answer.finish_reason)
                except Exception as error:
                    failed.append(repr(error))

    def press(num_users: int, pause_s: float, holds: Callable[[], bool], what: str) -> None:
        stopping = threading.Event()
        users = [threading.Thread(target=ask, args=(number, pause_s, stopping)) for number in range(num_users)]
        for user in users:
            user.start()
        try:
            wait_until(lambda: note_states() and holds(), what)
        finally:
            stopping.set()
            for user in users:
                user.join()

    with OwnServer(serve_command(options)) as server:
        press(6, 0.0, lambda: states[-1][0] == 3, "three replicas serve")
        press(1, 2.0, lambda: states[-1][0] == 1, "one replica serves")
        press(6, 0.0, lambda: states[-1][0] == 3, "three replicas serve again")
    assert failed == []
    assert len(ended) > 50
    assert "cancelled" not in ended


def test_keda_is_told_by_the_command_what_a_server_needs() -> None:
    with OwnServer(COUNTING) as server:
        command = [sys.executable, "-P", "-m", "cloudcomplete", "allocator", "scaler", "--metrics", server.metrics_url]
        command += ["--listen", "127.0.0.1:0", "--object", "prod/completions"]
        for setting in ("interval_s=1", "capacity=1", "cooldown_intervals=0", "max_replicas=9"):
            command += ["--set", f"allocator.{setting}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"scaling prod/completions from 1 replicas; KEDA asks at port (\d+)\n", line)
            assert found, line
            reference = pb.ScaledObjectRef(namespace="prod", name="completions")
            with grpc.insecure_channel(f"127.0.0.1:{found[1]}") as channel, Client(server.address) as client:
                stub = pb_grpc.ExternalScalerStub(channel)

                def target() -> int:
                    request = pb.GetMetricsRequest(scaledObjectRef=reference, metricName=METRIC)
                    return int(stub.GetMetrics(request).metricValues[0].metricValue)

                def is_more() -> bool:
                    client.complete(f"{time.monotonic_ns()}", max_tokens=1)  # never the same, which is no work
                    return target() > 1

                assert target() == 1
                wait_until(is_more, "requests beyond the capacity of one replica ask for more")
                assert stub.IsActive(reference).result
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
