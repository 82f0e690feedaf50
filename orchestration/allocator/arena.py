"""Where policies meet: one trace, scaled, split in time, and fleets that run on it.

The first `TUNING_SHARE` of the time is for tuning and training; the rest is looked at once, for the report. Traffic is
scaled so that the least static fleet that keeps the service level there has `STATIC_REPLICAS` replicas.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestration.allocator.baselines import STATIC, Baseline
from orchestration.allocator.errors import TraceError
from orchestration.allocator.forecaster import foresee
from orchestration.allocator.service import Service, StepTimes, Workload, describe_service
from orchestration.allocator.simulator import FleetRules, Totals, Traffic, percentile_s, simulate
from orchestration.allocator.traces import Trace

TUNING_SHARE = 0.6
_MAX_FLEETS = 128
"""Fleets in one batch: more use more memory and no less time."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy came to, on one stretch of time with one seed."""

    replica_hours: float
    attainment: float
    """Share of windows in which p95 kept the SLO."""
    on_time_share: float
    """Share of requests whose first token came within the SLO."""
    dropped: float
    changes_per_hour: float
    mean_s: float
    p95_s: float
    p99_s: float


class Arena:
    """One trace at one scale: draws arrivals, runs fleets on a stretch of it."""

    def __init__(self, trace: Trace, *, steps: StepTimes, workload: Workload, rules: FleetRules) -> None:
        if trace.prompt_tokens is not None and trace.output_tokens is not None:
            workload = msgspec.structs.replace(
                workload,
                prompt_tokens=trace.prompt_tokens,
                output_tokens=trace.output_tokens,
                prompt_cv=trace.prompt_cv or workload.prompt_cv,
            )
        self.trace, self.rules, self.workload = trace, rules, workload
        self.service: Service = describe_service(steps, workload)
        self.scale = 1.0
        self.simulated_s = self.simulating_s = 0.0
        """Seconds of all fleets that ran, and what they took."""
        unit = rules.interval_s * rules.window_intervals
        self.split_s = int(trace.duration_s * TUNING_SHARE) // unit * unit
        self.end_s = trace.duration_s // unit * unit
        if min(self.split_s, self.end_s - self.split_s) < 2 * unit:
            raise TraceError(
                f"the trace lasts {trace.duration_s} s; expected at least {5 * unit} s to tune and to test on"
            )
        self._drawn: dict[tuple[float, int], NDArray[np.float32]] = {}
        self._foreseen: dict[tuple[float, int], NDArray[np.float32]] = {}

    @property
    def fleet_s_per_s(self) -> int:
        """Seconds of all fleets that were simulated in one second, compilation included."""
        return round(self.simulated_s / max(self.simulating_s, 1e-9))

    @property
    def tuning(self) -> tuple[int, int]:
        """Seconds from and to, of what may be looked at."""
        return 0, self.split_s

    @property
    def test(self) -> tuple[int, int]:
        return self.split_s, self.end_s

    def fit_scale(self, replicas: int, attainment: float, *, seed: int = 0) -> float:
        """Set and return the largest scale at which `replicas` keep the service level on the tuning stretch."""
        mean = float(self.trace.rates[: int(self.split_s / self.trace.window_s)].mean())
        low, high = 0.0, 4 * replicas * self.service.capacity / max(mean, 1e-9)
        for _ in range(2):
            candidates = np.linspace(low, high, 17)[1:]
            kept = low
            arrivals = np.stack([self.draw(scale, seed)[: self.split_s] for scale in candidates], axis=1)
            totals, _ = self._run(STATIC, [{"replicas": float(replicas)}] * len(candidates), arrivals, None, seed)
            reached = 1 - np.asarray(totals.missed / totals.windows)
            for scale, share in zip(candidates, reached, strict=True):
                if share < attainment:
                    break
                kept = float(scale)
            low, high = kept, kept + (high - low) / 16
            self._drawn.clear()
        if low == 0:
            raise TraceError(f"no scale of this trace lets {replicas} replicas keep the service level")
        self.scale = low
        return low

    def draw(self, scale: float, seed: int) -> NDArray[np.float32]:
        """Return arrivals in each second of the whole trace."""
        key = (scale, seed)
        if key not in self._drawn:
            self._drawn[key] = self.trace.draw(scale=scale, seed=seed)[: self.end_s]
        return self._drawn[key]

    def foreseen(self, seed: int) -> NDArray[np.float32]:
        """Return the forecaster's features before each interval of the whole trace, [intervals, FEATURES]."""
        key = (self.scale, seed)
        if key not in self._foreseen:
            arrivals = self.draw(self.scale, seed).reshape(-1, self.rules.interval_s, 1)
            self._foreseen[key] = foresee(arrivals, self.service.capacity, interval_s=self.rules.interval_s)[:, 0]
        return self._foreseen[key]

    def run(
        self,
        policy: Baseline,
        settings: list[dict[str, float]],
        stretch: tuple[int, int],
        *,
        seed: int,
        features: NDArray[np.float32] | None = None,
        shared: Any = None,
        has_histogram: bool = False,
    ) -> tuple[Totals, Any]:
        """Run one fleet for each setting.

        `features` [intervals, n] for all or
        [intervals, fleets, n] for each, `shared` parameters beside the settings.
        """
        arrivals = self.draw(self.scale, seed)[slice(*stretch)]
        return self._run(policy, settings, arrivals[:, None], features, seed, shared, has_histogram=has_histogram)

    def run_seeds(
        self,
        policy: Baseline,
        setting: dict[str, float],
        stretch: tuple[int, int],
        seeds: Sequence[int],
        *,
        features: NDArray[np.float32] | None = None,
        shared: Any = None,
    ) -> tuple[list[Outcome], NDArray[np.float32]]:
        """Return what one setting comes to with each seed, and how many replicas ran with the first one, [intervals].

        `features` [intervals, seeds, n].
        """
        arrivals = np.stack([self.draw(self.scale, seed)[slice(*stretch)] for seed in seeds], axis=1)
        totals, (_, seen) = self._run(
            policy, [setting] * len(seeds), arrivals, features, seeds[0], shared, has_histogram=True
        )
        return read_outcomes(totals, stretch[1] - stretch[0]), np.asarray(seen.ready + seen.warming)[:, 0]

    def _run(
        self,
        policy: Baseline,
        settings: list[dict[str, float]],
        arrivals: NDArray[np.float32],
        features: NDArray[np.float32] | None,
        seed: int,
        shared: Any = None,
        *,
        has_histogram: bool = False,
    ) -> tuple[Totals, Any]:
        totals: list[Totals] = []
        outputs = []
        interval_s = self.rules.interval_s
        counts = arrivals.reshape(-1, interval_s, arrivals.shape[1])
        failing = np.random.default_rng([seed, 1]).random(len(counts)).astype(np.float32)
        features = np.zeros((len(counts), 1), np.float32) if features is None else features
        start = counts[: self.rules.window_intervals].mean() / self.service.capacity
        for first in range(0, len(settings), _MAX_FLEETS):
            part = settings[first : first + _MAX_FLEETS]
            num = len(part)
            parameters: Any = {key: jnp.array([one[key] for one in part], jnp.float32) for key in part[0]}
            if "replicas" in parameters:
                ready = parameters["replicas"]
            else:
                ready = jnp.full(num, float(np.clip(np.ceil(start * 1.3 + 1), 1, self.rules.max_replicas)))
            if shared is not None:
                parameters = (shared, parameters)
            own = counts if counts.shape[2] == num else np.broadcast_to(counts, (*counts.shape[:2], num))
            traffic = Traffic(
                jnp.asarray(own),
                jnp.asarray(np.broadcast_to(failing[:, None], (len(counts), num))),
                jnp.asarray(features[:, first : first + num])
                if features.ndim == 3
                else jnp.broadcast_to(jnp.asarray(features)[:, None], (len(counts), num, features.shape[1])),
            )
            began = time.monotonic()
            one, output = simulate(
                self.rules,
                policy.decide,
                parameters,
                policy.start(ready),
                self.service,
                traffic,
                ready,
                has_histogram=has_histogram,
            )
            totals.append(Totals(*map(np.asarray, one)))
            self.simulated_s += num * len(counts) * interval_s
            self.simulating_s += time.monotonic() - began
            outputs.append(output)
        return Totals(*(np.concatenate(values) for values in zip(*totals, strict=True))), outputs[0]


def read_outcomes(totals: Totals, duration_s: int) -> list[Outcome]:
    """Return what each fleet of a run with a histogram came to."""
    p95, p99 = percentile_s(totals, 95), percentile_s(totals, 99)
    hours = duration_s / 3600
    return [
        Outcome(
            replica_hours=float(totals.replica_s[i] / 3600),
            attainment=float(1 - totals.missed[i] / totals.windows[i]),
            on_time_share=float(1 - totals.late[i] / max(totals.requests[i], 1)),
            dropped=float(totals.dropped[i]),
            changes_per_hour=float(totals.changes[i] / hours),
            mean_s=float(totals.sum_s[i] / max(totals.requests[i] - totals.dropped[i], 1)),
            p95_s=float(p95[i]),
            p99_s=float(p99[i]),
        )
        for i in range(len(p95))
    ]
