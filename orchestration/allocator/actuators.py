"""Actuators: make a fleet have the size that was decided. Know nothing of why.

`ReplicasActuator` adds and drains engines of this process; `scaler.py` answers KEDA, which does it in Kubernetes.
"""

from typing import Protocol

from engine.replicas import Replicas


class Actuator(Protocol):
    """Brings a fleet to a size."""

    def apply(self, target: int) -> None:
        """Start or give up replicas until those that serve or start are `target`; returns at once."""


class ReplicasActuator:
    """Engines of one process; a drained one ends when its last request has, so none is lost."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def apply(self, target: int) -> None:
        """Add engines, which warm in their own threads, or drain the newest that are ready."""
        here = [stats for stats in self._replicas.replica_stats() if stats.state in ("warming", "ready")]
        for _ in range(target - len(here)):
            self._replicas.add()
        ready = [stats.replica for stats in here if stats.state == "ready"]
        # At least one stays: a router without replicas refuses everything.
        excess = min(len(here) - target, len(ready) - 1)
        for replica in ready[::-1][: max(excess, 0)]:
            self._replicas.drain(replica)
