"""Traffic: reads recorded traces and draws arrivals from them.

A file's header line says what it holds, plain or gzip:

- `TIMESTAMP,ContextTokens,GeneratedTokens`: one request a line, as Azure publishes them;
- `client,window_start_s,requests_per_s,interarrival_cv`: rates of clients in windows of equal length, as ServeGen
  publishes them (Xiang et al., 2025).

Arrivals are made for seconds. Of recorded requests a random share is kept (or each is multiplied), so that their bursts
stay. Rates are joined by straight lines between the middles of windows, and bursts are a slow random factor (an AR(1)
process of log rates, correlated over `_BURST_S`) whose strength gives the counts of long intervals the variance that
superposed renewal processes have: the mean of `cv²`, weighted by rate (Sriram and Whitt, 1986). Knows no fleet.
"""

import csv
import gzip
import io
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestration.allocator.errors import TraceError

REQUESTS_HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
RATES_HEADER = ["client", "window_start_s", "requests_per_s", "interarrival_cv"]
_BURST_S = 10.0
_MIN_S = 600
"""Less traffic than this says nothing about a policy."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Traffic over time, before it is scaled."""

    window_s: float
    """Length of a window; 1 where requests were recorded one by one."""
    rates: NDArray[Any]
    """[windows] requests per second, mean over the window."""
    dispersion: NDArray[Any]
    """[windows] variance over mean of the number of arrivals in a long interval; 1 is a Poisson process."""
    is_recorded: bool
    """Whether `rates` are counts of single requests, whose bursts are in the data."""
    prompt_tokens: float | None = None
    """Mean prompt, where the trace tells it."""
    output_tokens: float | None = None
    prompt_cv: float | None = None

    @property
    def duration_s(self) -> int:
        return int(len(self.rates) * self.window_s)

    def draw(self, *, scale: float, seed: int) -> NDArray[np.float32]:
        """Return arrivals in each second, [duration_s]; the same seed at another scale draws similar bursts."""
        rng = np.random.default_rng(seed)
        if self.is_recorded:
            whole = np.floor(scale)
            counts = self.rates * whole + rng.binomial(self.rates.astype(np.int64), scale - whole)
            kept: NDArray[np.float32] = counts.astype(np.float32)
            return kept
        seconds = np.arange(self.duration_s) + 0.5
        middles = (np.arange(len(self.rates)) + 0.5) * self.window_s
        rates = np.interp(seconds, middles, self.rates) * scale
        excess = np.interp(seconds, middles, self.dispersion - 1) * scale  # thinning keeps (D - 1) in proportion
        variance = np.log1p(np.maximum(excess, 0) / (2 * _BURST_S * np.maximum(rates, 1e-9)))
        factor = _ar1(rng.standard_normal(len(rates)), np.exp(-1 / _BURST_S))
        rates = rates * np.exp(np.sqrt(variance) * factor - variance / 2)
        drawn: NDArray[np.float32] = rng.poisson(rates).astype(np.float32)
        return drawn


def _ar1(noise: NDArray[np.float64], keep: float) -> NDArray[np.float64]:
    """Return a stationary AR(1) process of variance 1; blocks make the recurrence fast."""
    block = 128
    padded = np.concatenate([noise, np.zeros(-len(noise) % block)]).reshape(-1, block)
    lags = np.arange(block)
    kernel = np.tril(keep ** np.maximum(lags[:, None] - lags, 0)) * np.sqrt(1 - keep**2)
    inner = padded @ kernel.T
    state, out = noise[0], np.empty_like(inner)
    decay = keep ** (lags + 1)
    for row, values in enumerate(inner):
        out[row] = values + decay * state
        state = out[row, -1]
    process: NDArray[np.float64] = out.reshape(-1)[: len(noise)]
    return process


def read_trace(path: Path) -> Trace:
    """Read a trace by its header line; raises TraceError with the line that is wrong."""
    rows = csv.reader(io.StringIO(_read_text(path)))
    header = next(rows, None)
    if header is None:
        raise TraceError(f"{path} is empty; expected a header line and rows of requests or rates")
    if header == REQUESTS_HEADER:
        return _read_requests(path, rows)
    if header == RATES_HEADER:
        return _read_rates(path, rows)
    raise TraceError(
        f"{path} begins with {','.join(header)[:80]!r}; expected {','.join(REQUESTS_HEADER)!r} or "
        f"{','.join(RATES_HEADER)!r}"
    )


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode()
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"cannot read the trace {path}: {error}; expected a CSV file, plain or gzip") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path} is no text; expected a CSV file, plain or gzip") from None


def _read_requests(path: Path, rows: Any) -> Trace:
    times, prompts, outputs = [], [], []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            stamp, prompt, output = row
            # More digits than datetime keeps: Azure writes seven.
            times.append(datetime.fromisoformat(stamp.strip()[:26]).timestamp())
            prompts.append(float(prompt))
            outputs.append(float(output))
        except ValueError:
            raise TraceError(
                f"{path} line {number} is {','.join(row)[:80]!r}; expected a time, prompt tokens and output tokens"
            ) from None
        if len(times) > 1 and times[-1] < times[-2]:
            raise TraceError(f"{path} line {number} is earlier than the line before; sort the trace by time")
    _check_length(path, (times[-1] - times[0]) if times else 0)
    counts = np.bincount((np.array(times) - times[0]).astype(np.int64)).astype(np.float64)
    mean_prompt = float(np.mean(prompts))
    return Trace(
        window_s=1.0,
        rates=counts,
        dispersion=np.ones_like(counts),
        is_recorded=True,
        prompt_tokens=mean_prompt,
        output_tokens=float(np.mean(outputs)),
        prompt_cv=float(np.std(prompts) / max(mean_prompt, 1e-9)),
    )


def _read_rates(path: Path, rows: Any) -> Trace:
    table = []
    last: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            client, start, rate, cv = row[0], *map(float, row[1:])
        except ValueError:
            start = rate = cv = float("nan")
        if len(row) != 4 or not (np.isfinite([start, rate, cv]).all() and rate >= 0 and cv >= 0):
            raise TraceError(
                f"{path} line {number} is {','.join(row)[:80]!r}; expected a client, a start in seconds, a rate and a "
                "coefficient of variation, none negative"
            )
        if start <= last.get(client, -np.inf):
            raise TraceError(
                f"{path} line {number}: client {client} goes back to {start:g} s; sort each client's rows by time"
            )
        last[client] = start
        table.append((start, rate, cv))
    if not table:
        _check_length(path, 0)
    starts, rates, cvs = np.array(table).T
    distinct = np.unique(starts)
    window_s = float(np.diff(distinct).min()) if len(distinct) > 1 else 0.0
    _check_length(path, distinct[-1] - distinct[0] + window_s)
    index = np.round((starts - distinct[0]) / window_s).astype(np.int64)
    total = np.bincount(index, rates)
    spread = np.bincount(index, rates * cvs**2)
    known = np.bincount(index) > 0
    windows = np.arange(len(total))
    dispersion = spread[known] / np.maximum(total[known], 1e-9)
    # A window of which nothing was recorded is a gap in the telemetry, not an hour without traffic.
    return Trace(
        window_s=window_s,
        rates=np.interp(windows, windows[known], total[known]),
        dispersion=np.maximum(np.interp(windows, windows[known], dispersion), 0),
        is_recorded=False,
    )


def _check_length(path: Path, duration_s: float) -> None:
    if duration_s < _MIN_S:
        raise TraceError(
            f"{path} holds {duration_s:.0f} s of traffic; expected at least {_MIN_S} s, to tune on and to test on"
        )
