"""Traces of arrivals: both formats, what is refused, and the window that is replayed."""

import gzip
from pathlib import Path

import pytest

from loadtest.arrivals import Arrival, read_arrivals, read_rates, window
from loadtest.errors import TraceError

REQUESTS = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n"
    "2023-11-16 18:17:04.4799600,3180,8\n"
    "2023-11-16 18:17:05.9799600,110,27\n"
)
RATES = "client,window_start_s,requests_per_s,interarrival_cv\n0,600,0.5,1\n1,600,1.5,1\n0,0,1,2\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_requests_count_from_the_first_one(tmp_path: Path) -> None:
    arrivals = read_arrivals(write(tmp_path / "t.csv", REQUESTS))
    assert arrivals == [Arrival(0.0, 4808, 10), Arrival(0.5, 3180, 8), Arrival(2.0, 110, 27)]


def test_a_gzipped_trace_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(REQUESTS.encode()))
    assert read_arrivals(path) == read_arrivals(write(tmp_path / "t.csv", REQUESTS))


def test_rates_of_all_clients_are_added_up_in_order_of_time(tmp_path: Path) -> None:
    assert read_rates(write(tmp_path / "r.csv", RATES)) == [(0.0, 1.0), (600.0, 2.0)]


def test_rates_of_a_trace_of_requests_are_its_counts_by_second(tmp_path: Path) -> None:
    assert read_rates(write(tmp_path / "t.csv", REQUESTS)) == [(0.0, 2.0), (1.0, 0.0), (2.0, 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a trace of requests (TIMESTAMP,ContextTokens,GeneratedTokens) or of rates"),
        ("a,b\n1,2\n", "is no trace of requests: expected the header TIMESTAMP,ContextTokens,GeneratedTokens, got"),
        (REQUESTS.splitlines()[0] + "\n", "has a header and no requests; expected at least one"),
        (
            REQUESTS + "soon,1,1\n",
            "line 5 of {path} is 'soon,1,1': Invalid isoformat string: 'soon'; the trace is damag",
        ),
        (
            REQUESTS + "2023-11-16 18:17:01,1,1\n",
            "line 5 of {path} is earlier than the one before; expected them in or",
        ),
    ],
)
def test_what_is_no_trace_of_requests_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(TraceError) as raised:
        read_arrivals(path)
    assert message.format(path=path) in str(raised.value)


def test_a_missing_file_a_damaged_one_and_a_foreign_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot read the trace .*: No such file"):
        read_rates(tmp_path / "none")
    cut_short = tmp_path / "cut.gz"
    cut_short.write_bytes(gzip.compress(REQUESTS.encode())[:-9])
    with pytest.raises(TraceError, match="is damaged or no text"):
        read_rates(cut_short)
    with pytest.raises(TraceError, match="is no trace of arrivals: expected a trace of requests"):
        read_rates(write(tmp_path / "x.csv", "a,b\n"))
    with pytest.raises(TraceError, match="has no window with a request in it"):
        read_rates(write(tmp_path / "z.csv", RATES.splitlines()[0] + "\n0,0,0,1\n"))


def test_a_window_at_twice_the_pace_has_the_same_requests_in_half_the_time() -> None:
    arrivals = [Arrival(float(second), second, 1) for second in range(10)]
    chosen = window(arrivals, begin_s=3.0, duration_s=2.0, rate=2.0)
    assert [(arrival.at_s, arrival.num_prompt_tokens) for arrival in chosen] == [(0, 3), (0.5, 4), (1, 5), (1.5, 6)]


def test_after_its_end_a_trace_goes_on_at_its_beginning() -> None:
    arrivals = [Arrival(0.0, 1, 1), Arrival(1.0, 2, 1)]
    chosen = window(arrivals, begin_s=1.0, duration_s=2.5, rate=1.0)
    assert [(arrival.at_s, arrival.num_prompt_tokens) for arrival in chosen] == [(0, 2), (0.5, 1), (1.5, 2), (2.0, 1)]
