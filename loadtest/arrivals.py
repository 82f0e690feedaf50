"""Arrivals: when the requests of a trace came and how long prompts and answers were; and rates of requests over days.

Two formats, told by their header line, plain or gzipped: requests (`TIMESTAMP,ContextTokens,GeneratedTokens`, as Azure
publishes them) and rates (`client,window_start_s,requests_per_s,interarrival_cv`, as ServeGen does). Knows no server.
"""

import csv
import gzip
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from loadtest.errors import TraceError

_REQUESTS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_RATES = ("client", "window_start_s", "requests_per_s", "interarrival_cv")
_FORMATS = f"a trace of requests ({','.join(_REQUESTS)}) or of rates ({','.join(_RATES)}), with that header line"
_GZIP_MAGIC = b"\x1f\x8b"


class Arrival(msgspec.Struct, frozen=True):
    """One request of a trace."""

    at_s: float
    """Seconds since the first one."""
    num_prompt_tokens: int
    num_output_tokens: int


def read_arrivals(path: Path) -> list[Arrival]:
    """Read a trace of requests, in order of time; raises TraceError."""
    header, lines = _read(path)
    if header != _REQUESTS:
        raise TraceError(f"{path} is no trace of requests: expected the header {','.join(_REQUESTS)}, got {header}")
    arrivals: list[Arrival] = []
    began: datetime | None = None
    for number, cells in lines:
        try:
            at, num_prompt_tokens, num_output_tokens = (
                datetime.fromisoformat(cells[0][:26]),
                int(cells[1]),
                int(cells[2]),
            )
            began = began or at
            at_s = (at - began).total_seconds()
        except (ValueError, IndexError, TypeError) as error:
            raise _unreadable(path, number, cells, error) from None
        if arrivals and at_s < arrivals[-1].at_s:
            raise TraceError(f"line {number} of {path} is earlier than the one before; expected them in order: sort it")
        arrivals.append(Arrival(at_s, max(1, num_prompt_tokens), max(1, num_output_tokens)))
    if not arrivals:
        raise TraceError(f"{path} has a header and no requests; expected at least one")
    return arrivals


def read_rates(path: Path) -> list[tuple[float, float]]:
    """Return where each window of time begins, in seconds, and its requests per second; raises TraceError.

    Of a trace of requests the windows are of equal length, about a hundred of them.
    """
    header, lines = _read(path)
    if header == _REQUESTS:
        arrivals = read_arrivals(path)
        width_s = max(1.0, arrivals[-1].at_s / 100)
        counts = [0] * (math.floor(arrivals[-1].at_s / width_s) + 1)
        for arrival in arrivals:
            counts[math.floor(arrival.at_s / width_s)] += 1
        return [(index * width_s, count / width_s) for index, count in enumerate(counts)]
    if header != _RATES:
        raise TraceError(f"{path} is no trace of arrivals: expected {_FORMATS}, got {header}")
    rates: dict[float, float] = defaultdict(float)
    for number, cells in lines:
        try:
            start_s, rate = float(cells[1]), float(cells[2])
        except (ValueError, IndexError) as error:
            raise _unreadable(path, number, cells, error) from None
        if not (math.isfinite(start_s) and 0 <= rate < math.inf):
            raise _unreadable(path, number, cells, ValueError("expected finite numbers, a rate of 0 or more"))
        rates[start_s] += rate
    if not any(rates.values()):
        raise TraceError(f"{path} has no window with a request in it; expected rates above 0")
    return sorted(rates.items())


def window(arrivals: Sequence[Arrival], *, begin_s: float, duration_s: float, rate: float) -> list[Arrival]:
    """Return what arrives from `begin_s` of a trace on, at `rate` times its pace, for `duration_s` seconds from now.

    Times count from `begin_s`; after its end the trace goes on at its beginning, after a mean gap. At twice the pace
    there are about twice as many requests in the same time, in the same bursts.
    """
    lap_s = arrivals[-1].at_s * (1 + 1 / len(arrivals)) if len(arrivals) > 1 else 1.0
    chosen: list[Arrival] = []
    first = next((index for index, arrival in enumerate(arrivals) if arrival.at_s >= begin_s % lap_s), 0)
    index = first
    while True:
        lap, ordinal = divmod(index, len(arrivals))
        at_s = (lap * lap_s + arrivals[ordinal].at_s - begin_s % lap_s) / rate
        if at_s >= duration_s:
            return chosen
        if at_s >= 0:
            chosen.append(Arrival(at_s, arrivals[ordinal].num_prompt_tokens, arrivals[ordinal].num_output_tokens))
        index += 1


def _read(path: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, list[str]]]]:
    """Return the header and the numbered lines after it."""
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        lines = data.decode().splitlines()
    except OSError as error:
        problem = error.strerror or str(error)
        raise TraceError(f"cannot read the trace {path}: {problem}; expected {_FORMATS}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(f"{path} is damaged or no text: {error}; expected {_FORMATS}") from None
    if not lines:
        raise TraceError(f"{path} is empty; expected {_FORMATS}")
    rows = csv.reader(lines[1:])
    return tuple(lines[0].split(",")), ((number, row) for number, row in enumerate(rows, 2) if row)


def _unreadable(path: Path, number: int, cells: Sequence[str], error: Exception) -> TraceError:
    return TraceError(f"line {number} of {path} is {','.join(cells)!r}: {error}; the trace is damaged")
