"""The load test as a whole: Locust in processes of its own, alone, distributed and with a worker that dies."""

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.errors import RunError
from loadtest.load_result import LoadResult
from loadtest.load_run import LoadRun, LoadSettings, free_port
from tests.loadtest.handmade_trace import encode, history_of, typed
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer

START_S = 60
ARRIVALS = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:0{second}.{tenth},40,2\n" for second in range(3) for tenth in range(10)
)
RATES = "client,window_start_s,requests_per_s,interarrival_cv\n0,0,1,1\n0,600,4,1\n0,1200,2,1\n"


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    engine = CountingEngine(num_slots=16, max_waiting=64)
    yield engine
    engine.close(timeout_s=0)


@pytest.fixture
def address(engine: CountingEngine) -> Iterator[str]:
    with InProcessServer(engine) as server:
        yield server.address


@pytest.fixture
def typing_trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.json"
    path.write_bytes(encode(history_of(typed("value = 12\n" * 30, gap_s=0.05), start="\n")))
    return str(path)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def wait_for_requests(engine: CountingEngine) -> None:
    deadline_s = time.monotonic() + START_S
    while len(engine.seen) < 4:
        assert time.monotonic() < deadline_s, "no load came"
        time.sleep(0.05)


def run(settings: LoadSettings) -> LoadResult:
    with LoadRun(settings) as load:
        return load.wait()


def test_two_workers_on_loopback_share_typing_and_bursts(address: str, typing_trace: str, tmp_path: Path) -> None:
    arrivals = write(tmp_path / "arrivals.csv", ARRIVALS)
    settings = LoadSettings(
        scenario="mixed", address=address, seconds=5, users=4, workers=2, typing_trace=typing_trace, arrivals=arrivals
    )
    result = run(settings)
    assert (result.problems, result.errors) == ([], {})
    headline = result.headline()
    assert headline["keystrokes"] is not None
    assert headline["keystrokes"] > 20
    assert headline["request_failures"] == headline["keystroke_failures"] == 0
    assert headline["requests"]
    assert headline["first_text_p95_ms"] is not None


def test_a_trace_of_rates_is_followed_and_the_web_page_is_there_meanwhile(
    engine: CountingEngine, address: str, typing_trace: str, tmp_path: Path
) -> None:
    rates = write(tmp_path / "rates.csv", RATES)
    port = free_port()
    settings = LoadSettings(
        scenario="daily", address=address, seconds=4, users=4, web_port=port, typing_trace=typing_trace, arrivals=rates
    )
    with LoadRun(settings) as load:
        wait_for_requests(engine)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            assert b"Locust" in answer.read()
        result = load.wait()
    assert result.problems == []
    assert result.headline()["keystrokes"]


def test_a_worker_that_dies_in_the_middle_makes_the_figures_partial(engine: CountingEngine, address: str) -> None:
    with LoadRun(LoadSettings(scenario="patient", address=address, seconds=8, users=4, workers=2)) as load:
        wait_for_requests(engine)
        os.kill(load.worker_pids[1], signal.SIGKILL)
        result = load.wait()
    [problem] = result.problems
    assert "run it again" in problem
    assert result.headline()["requests"]


def test_an_address_where_no_server_answers_is_said_and_no_figures_are_given() -> None:
    with pytest.raises(RunError, match=r"no server answers at 127.0.0.1:1 within 5 s; expected one that is serving"):
        run(LoadSettings(scenario="patient", address="127.0.0.1:1", seconds=2, users=1))


def test_a_trace_of_another_format_is_said_before_anything_is_asked(address: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.csv", RATES)
    with pytest.raises(RunError, match="is no trace of requests: expected the header TIMESTAMP"):
        run(LoadSettings(scenario="bursts", address=address, seconds=2, users=1, arrivals=other))


def test_an_unknown_scenario_is_refused_at_once() -> None:
    with pytest.raises(RunError, match="'nothing' is no scenario"):
        LoadRun(LoadSettings(scenario="nothing", address="x:1", seconds=1, users=1))
