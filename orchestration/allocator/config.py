"""Deployment choices of the allocator: the [allocator] section of the configuration file."""

from typing import Literal

import msgspec

Mode = Literal["off", "watch", "shadow", "learned"]


class AllocatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides how many replicas run, and within which bounds."""

    mode: Mode = "off"
    """off: the number stays; watch: decide and log, change nothing; shadow: the M/M/c baseline decides, the learned
    policy is asked and logged; learned: the learned policy decides while it is sound."""
    min_replicas: int = 1
    """Replicas that always run."""
    max_replicas: int = 4
    """Most replicas; each has KV of its own, so memory decides how many are possible."""
    interval_s: int = 10
    """Seconds between decisions."""
    cold_start_s: int = 40
    """What a replica takes from the decision until it serves; one that is not seen after three times that is no longer
    waited for."""
    slo_s: float = 0.3
    """Time to the first token that 95 % of the requests shall keep."""
    capacity: float = 0.0
    """Requests per second that one replica sustains; 0: what `steps` and an assumed mean request come to. A promoted
    policy brings its own."""
    steps: str = ""
    """JSON file of step times, as `cloudcomplete allocator calibrate` writes it; empty: assumed ones."""
    policy_dir: str = ""
    """Directory of the promoted policy, read again whenever it is replaced; empty: the baseline alone decides."""
    kill_switch: str = ""
    """A file; while it exists the baseline decides."""
    telemetry: str = ""
    """File in which each interval is recorded, from which `cloudcomplete flows run retrain-policy` learns."""
    telemetry_bytes: int = 64 * 1024 * 1024
    """Most bytes of it: about three weeks."""
    keep: float = 0.8
    """The baseline's settings, which `allocator evaluate` tunes: share of the last interval's rate that is kept,"""
    margin: float = 0.3
    """share of load that is provided for beyond what is seen,"""
    gain: float = 1.0
    """replicas for each replica's worth of requests that waited,"""
    hold: float = 3.0
    """intervals that a higher target is kept."""
    cooldown_intervals: int = 3
    """After a step up there is no step down for so long."""
    max_distance: float = 8.0
    """In deviations from the states of training; beyond, the baseline decides."""
    max_breaches: int = 3
    """Late intervals in a row after which the baseline decides,"""
    penalty_intervals: int = 60
    """and for how long."""
    max_missing: int = 6
    """Intervals without metrics after which the fleet goes to its safe size,"""
    safe_replicas: int = 4
    """which is never below what it has."""

    @property
    def problem(self) -> str:
        """What is wrong with these choices together; empty: nothing."""
        if not 1 <= self.min_replicas <= self.max_replicas:
            return (
                f"allocator.min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}; expected at "
                "least 1, and no less than the first"
            )
        for name in ("interval_s", "slo_s", "cold_start_s"):
            if getattr(self, name) <= 0:
                return f"allocator.{name} is {getattr(self, name):g}; expected a time above 0"
        return ""
