"""What arrivals so far say about arrivals to come: smoothed rates, bursts, and the time of day.

`Forecaster` takes one interval's count after another, as the live controller does; `foresee` does the same for whole
traces at once. Features never use an interval's own count or a later one. Rates are given in offered load
(replicas kept busy), so that they mean the same at every scale. Knows no policy.
"""

import numpy as np
from numpy.typing import NDArray

FEATURES = (
    "load_30s",
    "load_120s",
    "load_600s",
    "growth_60s",
    "growth_300s",
    "burst_60s",
    "burst_600s",
    "peak_300s",
    "season_60s",
    "season_600s",
    "season_offset",
    "days_seen",
)
"""Names of the features, in order; a saved policy carries them, so that it is never fed others."""
_SMOOTHING_S = (30.0, 120.0, 600.0)
_BINS = 144
_DAY_S = 86400
_DAY_WEIGHT = 0.5
"""Weight of the newest day in the profile of days."""


class Forecaster:
    """Features of one or many streams of arrivals, interval by interval; state is O(day in bins) per stream."""

    def __init__(self, *, interval_s: int, num_streams: int = 1) -> None:
        self._interval_s, self._count = interval_s, 0
        self._levels = np.zeros((len(_SMOOTHING_S), num_streams))
        self._keep = np.exp(-interval_s / np.array(_SMOOTHING_S))[:, None]
        self._variance = np.ones((2, num_streams))
        self._variance_keep = np.exp(-interval_s / np.array([60.0, 600.0]))[:, None]
        self._past_levels = np.zeros((max(300 // interval_s, 1), num_streams))
        self._past_rates = np.zeros_like(self._past_levels)
        self._profile = np.zeros((_BINS, num_streams))
        self._days = np.zeros((_BINS, 1))
        self._bin_sum, self._bin_count, self._bin = np.zeros(num_streams), 0, -1

    def update(self, rate: NDArray[np.float64], time_s: float) -> None:
        """Take the rates per second, [streams], of the interval that ended at `time_s`, in s of days."""
        if self._count == 0:
            self._levels[:] = rate
            self._past_levels[:] = rate
            self._past_rates[:] = rate
        deviation = (rate - self._levels[1]) ** 2 * self._interval_s / np.maximum(self._levels[1], 1e-6)
        self._variance = self._variance_keep * self._variance + (1 - self._variance_keep) * np.minimum(deviation, 1e3)
        self._levels = self._keep * self._levels + (1 - self._keep) * rate
        place = self._count % len(self._past_levels)
        self._past_levels[place], self._past_rates[place] = self._levels[1], rate
        self._count += 1
        self._note_season(rate, time_s - self._interval_s / 2)

    def _note_season(self, rate: NDArray[np.float64], time_s: float) -> None:
        place = int(time_s % _DAY_S * _BINS / _DAY_S)
        if place != self._bin and self._bin_count:
            mean = self._bin_sum / self._bin_count
            weight = _DAY_WEIGHT if self._days[self._bin, 0] else 1.0
            self._profile[self._bin] += weight * (mean - self._profile[self._bin])
            self._days[self._bin, 0] += 1
            self._bin_sum, self._bin_count = np.zeros_like(self._bin_sum), 0
        self._bin = place
        self._bin_sum = self._bin_sum + rate
        self._bin_count += 1

    def features(self, capacity: NDArray[np.float64] | float, time_s: float) -> NDArray[np.float32]:
        """Return [streams, FEATURES] for a decision at `time_s`."""
        length = len(self._past_levels)
        sixty = max(60 // self._interval_s, 1)
        fast, middle, slow = np.maximum(self._levels, 1e-6)
        earlier = np.maximum(self._past_levels[(self._count - 1 - sixty) % length], 1e-6)
        oldest = np.maximum(self._past_levels[self._count % length], 1e-6)
        now, one, ten = (self._season(time_s + ahead) for ahead in (0, 60, 600))
        known = now > 0
        return np.stack(
            [
                fast / capacity,
                middle / capacity,
                slow / capacity,
                np.log(middle / earlier),
                np.log(middle / oldest),
                np.log(self._variance[0] + 0.1),
                np.log(self._variance[1] + 0.1),
                self._past_rates.max(0) / capacity - middle / capacity,
                np.where(known & (one > 0), np.log(np.maximum(one, 1e-6) / np.maximum(now, 1e-6)), 0),
                np.where(known & (ten > 0), np.log(np.maximum(ten, 1e-6) / np.maximum(now, 1e-6)), 0),
                np.where(known, np.log(slow / np.maximum(now, 1e-6)), 0),
                np.broadcast_to(np.minimum(self._count * self._interval_s / _DAY_S, 3.0), fast.shape),
            ],
            axis=1,
        ).astype(np.float32)

    def _season(self, time_s: float) -> NDArray[np.float64]:
        """Return the profile at a time of day, between the middles of its bins; 0 where a day has not been seen."""
        position = time_s % _DAY_S * _BINS / _DAY_S - 0.5
        low = int(np.floor(position))
        share = position - low
        left, right = self._profile[low % _BINS], self._profile[(low + 1) % _BINS]
        return np.where((left > 0) & (right > 0), left * (1 - share) + right * share, 0)


def foresee(
    arrivals: NDArray[np.float32], capacity: NDArray[np.float64] | float, *, interval_s: int, start_s: float = 0.0
) -> NDArray[np.float32]:
    """Return features before each interval, [intervals, streams, FEATURES], of [intervals, interval_s, streams].

    The first interval, before which nothing came, is described by itself.
    """
    rates = arrivals.mean(1).astype(np.float64)
    forecaster = Forecaster(interval_s=interval_s, num_streams=rates.shape[1])
    out = np.empty((*rates.shape, len(FEATURES)), np.float32)
    forecaster.update(rates[0], start_s)
    for number, rate in enumerate(rates):
        time_s = start_s + number * interval_s
        out[number] = forecaster.features(capacity, time_s)
        forecaster.update(rate, time_s + interval_s)
    return out
