import gzip
from pathlib import Path

import numpy as np
import pytest

from orchestration.allocator.errors import TraceError
from orchestration.allocator.traces import read_trace

RATES = "client,window_start_s,requests_per_s,interarrival_cv\n"
REQUESTS = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rates_of_clients_are_summed_by_window_and_gaps_are_bridged(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv.gz"
    rows = "a,0,2,1\na,600,4,1\na,1800,8,3\nb,0,1,2\nb,600,1,2\n"
    path.write_bytes(gzip.compress((RATES + rows).encode()))
    trace = read_trace(path)
    assert trace.rates.tolist() == [3, 5, 6.5, 8]
    assert trace.dispersion[0] == pytest.approx((2 * 1 + 1 * 4) / 3)
    assert trace.duration_s == 2400


def test_drawn_counts_have_the_mean_and_the_bursts_of_the_rates(tmp_path: Path) -> None:
    rows = "".join(f"a,{600 * i},20,3\n" for i in range(200))
    trace = read_trace(write(tmp_path / "rates.csv", RATES + rows))
    counts = trace.draw(scale=0.5, seed=1)
    assert counts.mean() == pytest.approx(10, rel=0.02)
    minutes = counts.reshape(-1, 200).sum(1)
    assert minutes.var() / minutes.mean() == pytest.approx(1 + (9 - 1) * 0.5, rel=0.2)
    assert (trace.draw(scale=0.5, seed=1) == counts).all()


def test_a_share_of_recorded_requests_is_kept_and_their_tokens_are_told(tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:{i // 60:02}:{i % 60:02}.1234567,100,10\n" * 4 for i in range(900))
    trace = read_trace(write(tmp_path / "requests.csv", REQUESTS + rows))
    assert (trace.prompt_tokens, trace.output_tokens, trace.prompt_cv) == (100, 10, 0)
    assert trace.draw(scale=1.0, seed=0).tolist() == [4.0] * 900
    assert trace.draw(scale=2.5, seed=0).mean() == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a header line"),
        ("a,b\n1,2\n", "begins with 'a,b'; expected"),
        (RATES, "holds 0 s of traffic; expected at least 600 s"),
        (RATES + "a,600,1,1\na,0,1,1\n", "line 3: client a goes back to 0 s; sort each client's rows by time"),
        (RATES + "a,0,-1,1\n", "line 2 is 'a,0,-1,1'; expected a client"),
        (REQUESTS + "2023-11-16 18:00:09,1,1\n2023-11-16 18:00:00,1,1\n", "line 3 is earlier than the line before"),
        (REQUESTS + "yesterday,1,1\n", "line 2 is 'yesterday,1,1'; expected a time"),
    ],
)
def test_a_trace_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(write(tmp_path / "trace.csv", text))
    assert message in str(caught.value)


def test_a_file_that_is_no_text_or_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_trace(tmp_path / "absent.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="is no text"):
        read_trace(tmp_path / "binary")
    (tmp_path / "half.gz").write_bytes(gzip.compress(b"x" * 10_000)[:20])
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_trace(tmp_path / "half.gz")


def test_counts_are_whole_numbers(tmp_path: Path) -> None:
    rows = "".join(f"a,{600 * i},3,1\n" for i in range(3))
    counts = read_trace(write(tmp_path / "rates.csv", RATES + rows)).draw(scale=1, seed=3)
    assert np.array_equal(counts, counts.round())
