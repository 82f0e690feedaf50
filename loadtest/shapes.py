"""Load shapes: how many users there are as a load test goes on. Knows no Locust, which asks it every second."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtest.arrivals import read_rates


class LoadShape(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the greatest number of users over the time of a test, in steps of equal length."""

    shares: tuple[float, ...]
    """Each from 0 to 1; at least one is 1."""

    @classmethod
    def from_rates(cls, rates: Sequence[tuple[float, float]], *, num_steps: int) -> "LoadShape":
        """Follow rates, `(start in seconds, requests per second)`, by their means in `num_steps` equal steps."""
        begin_s, end_s = rates[0][0], rates[-1][0]
        width_s = (end_s - begin_s) / num_steps or 1.0
        sums, counts = [0.0] * num_steps, [0] * num_steps
        for start_s, rate in rates:
            step = min(num_steps - 1, int((start_s - begin_s) / width_s))
            sums[step] += rate
            counts[step] += 1
        means = [total / count if count else 0.0 for total, count in zip(sums, counts, strict=True)]
        greatest = max(means)
        return cls(shares=tuple(mean / greatest for mean in means))

    @classmethod
    def read(cls, path: Path, *, num_steps: int) -> "LoadShape":
        """Read a shape from a trace of requests or of rates; raises TraceError."""
        return cls.from_rates(read_rates(path), num_steps=num_steps)

    def users_at(self, elapsed_s: float, *, duration_s: float, peak: int) -> int | None:
        """Return how many users there should be, at least one; None when the test is over."""
        if elapsed_s >= duration_s:
            return None
        share = self.shares[int(elapsed_s / duration_s * len(self.shares))]
        return max(1, round(share * peak))
