"""The loop that runs live: each interval it looks at the fleet, has the controller decide, and acts.

Runs on a thread of its own; whatever goes wrong in a round is logged, the fleet stays as it is, and the next round
comes. Rounds are kept in a file for `retrain-policy`. Knows no policy and no actuator.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Self

import msgspec

from engine.replicas import Replicas
from orchestration.allocator.actuators import Actuator, ReplicasActuator
from orchestration.allocator.config import AllocatorConfig
from orchestration.allocator.controller import Controller, Decision, LiveState
from orchestration.allocator.errors import AllocatorError
from orchestration.allocator.service import Workload, describe_service, read_steps
from orchestration.allocator.simulator import FleetRules
from orchestration.allocator.telemetry import Telemetry, read_registry
from server.app import App
from server.record_file import RecordFile

logger = logging.getLogger(__name__)

_LAST_ROUND_S = 1.0


class AllocationLoop:
    """`with AllocationLoop(...):` keeps a fleet at the size that is decided."""

    def __init__(
        self,
        config: AllocatorConfig,
        controller: Controller,
        telemetry: Telemetry,
        actuator: Actuator,
    ) -> None:
        self._config, self._controller, self._telemetry, self._actuator = config, controller, telemetry, actuator
        self._records = (
            RecordFile(Path(config.telemetry).expanduser(), max_bytes=config.telemetry_bytes)
            if config.telemetry
            else None
        )
        self._target, self._raised_s = 0, float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="allocator", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Decide nothing more; a round that is under way changes nothing any more, and is waited for shortly."""
        self._stopping.set()
        self._thread.join(_LAST_ROUND_S)

    def round(self) -> Decision:
        """Look, decide, act, once."""
        interval = self._telemetry.look()
        if interval is not None and self._records is not None:
            self._records.append(interval)
            self._records.flush()
        decision = self._controller.decide(None if interval is None else self._expect(interval.live), time.time())
        if decision.target > self._target:
            self._raised_s = time.monotonic()
        self._target = decision.target
        if self._config.mode != "watch" and not self._stopping.is_set():
            self._actuator.apply(decision.target)
        return decision

    def _expect(self, live: LiveState) -> LiveState:
        """Count as warming what was asked for and is not seen yet: a pod that starts tells nothing."""
        if self._config.mode == "watch" or time.monotonic() - self._raised_s > 3 * self._config.cold_start_s:
            return live
        return msgspec.structs.replace(live, warming=max(live.warming, self._target - live.ready))

    def _run(self) -> None:
        self._telemetry.look()  # from here on there is something to count from
        while not self._stopping.wait(self._config.interval_s):
            try:
                self.round()
            except Exception:
                logger.exception("this round of the allocator failed; the fleet stays as it is")


def accompany(config: AllocatorConfig, app: App) -> AllocationLoop:
    """Return the loop over the replicas of a server that serves; raises AllocatorError."""
    replicas = app.lifecycle.opened_engine
    if not isinstance(replicas, Replicas):
        raise AllocatorError(
            "allocator.mode needs replicas in this process, got a group of processes; expected allocator.mode = "
            '"off" there; scale groups with `cloudcomplete allocator scaler`'
        )
    return AllocationLoop(
        config,
        make_controller(config, replicas=replicas.count("ready")),
        Telemetry(read_registry(app.metrics.registry, slo_s=config.slo_s)),
        ReplicasActuator(replicas),
    )


def make_controller(config: AllocatorConfig, *, replicas: int) -> Controller:
    """Return a controller by its settings; raises AllocatorError."""
    if config.problem:
        raise AllocatorError(config.problem)
    capacity = config.capacity
    if capacity <= 0:
        steps = read_steps(Path(config.steps).expanduser() if config.steps else None)
        capacity = float(describe_service(steps, Workload()).capacity)
        if not config.steps:
            logger.warning(
                "allocator.capacity is not set: %.0f requests per second and replica are assumed, not measured",
                capacity,
            )
    rules = FleetRules(
        slo_s=config.slo_s,
        interval_s=config.interval_s,
        min_replicas=config.min_replicas,
        max_replicas=config.max_replicas,
        cold_start_s=config.cold_start_s,
    )
    return Controller(config, rules, capacity=capacity, replicas=replicas)
