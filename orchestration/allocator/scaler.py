"""The scaler: answers KEDA's external-scaler protocol with what the controller decided.

KEDA asks for a metric and its target value and wants value / target replicas: the value is the number of replicas
decided, the target is 1. An object that the scaler was not told of is answered NOT_FOUND, and KEDA keeps its size.
The interface file is `proto/externalscaler.proto`. Knows no policy.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from orchestration.allocator.config import AllocatorConfig
from orchestration.allocator.errors import ScalerError
from orchestration.allocator.loop import AllocationLoop, make_controller
from orchestration.allocator.telemetry import Telemetry, read_servers
from orchestration.proto import externalscaler_pb2 as pb
from orchestration.proto import externalscaler_pb2_grpc as pb_grpc

METRIC = "cloudcomplete_replicas"


class Targets:
    """The targets of named objects, and who waits for a change of them; belongs to one event loop."""

    def __init__(self, objects: dict[tuple[str, str], int]) -> None:
        """`objects`: (namespace, name) of each scaled object, and its first target."""
        self._targets = dict(objects)
        self.version = 0
        """Changes so far; read before the targets, so that `wait` misses none."""
        self._changed = asyncio.Condition()

    def get(self, namespace: str, name: str) -> int:
        """Return an object's target; raises ScalerError."""
        try:
            return self._targets[namespace, name]
        except KeyError:
            known = ", ".join(f"{space}/{one}" for space, one in sorted(self._targets)) or "none"
            raise ScalerError(f"object {namespace}/{name} is not scaled here; expected one of: {known}") from None

    async def set(self, namespace: str, name: str, target: int) -> None:
        """Change an object's target; raises ScalerError."""
        self.get(namespace, name)
        async with self._changed:
            self._targets[namespace, name] = target
            self.version += 1
            self._changed.notify_all()

    async def wait(self, version: int) -> None:
        """Return once there was a change after `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.version != version)


class Scaler(pb_grpc.ExternalScalerServicer):
    """The gRPC service."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets

    async def IsActive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tell whether the object should have a replica."""
        return pb.IsActiveResponse(result=await self._target(request, context) > 0)

    async def StreamIsActive(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Tell it now, and again whenever it changes."""
        last: bool | None = None
        while True:
            version = self._targets.version
            is_active = await self._target(request, context) > 0
            if is_active != last:
                last = is_active
                yield pb.IsActiveResponse(result=is_active)
            await self._targets.wait(version)

    async def GetMetricSpec(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name the one metric; each replica counts for 1."""
        await self._target(request, context)
        return pb.GetMetricSpecResponse(metricSpecs=[pb.MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1)])

    async def GetMetrics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tell how many replicas there should be."""
        target = await self._target(request.scaledObjectRef, context)
        if request.metricName not in ("", METRIC):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"metric {request.metricName!r} is unknown; expected {METRIC!r}"
            )
        value = pb.MetricValue(metricName=METRIC, metricValue=target, metricValueFloat=target)
        return pb.GetMetricsResponse(metricValues=[value])

    async def _target(self, reference: Any, context: Any) -> int:
        try:
            return self._targets.get(reference.namespace, reference.name)
        except ScalerError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            raise


async def start_scaler(targets: Targets, address: str) -> tuple[grpc.aio.Server, int]:
    """Serve the protocol on HOST:PORT (port 0: any free one); return the server and its port."""
    server = grpc.aio.server()
    pb_grpc.add_ExternalScalerServicer_to_server(Scaler(targets), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise ScalerError(f"cannot listen on {address}; expected a free HOST:PORT of this machine") from None
    await server.start()
    return server, port


class TargetsActuator:
    """Tells the scaler what was decided; from the controller's thread."""

    def __init__(self, targets: Targets, scaled: tuple[str, str], loop: asyncio.AbstractEventLoop) -> None:
        self._targets, self._scaled, self._loop = targets, scaled, loop

    def apply(self, target: int) -> None:
        """Let KEDA know; returns at once."""
        asyncio.run_coroutine_threadsafe(self._targets.set(*self._scaled, target), self._loop)


async def run_scaler(
    config: AllocatorConfig,
    *,
    metrics: Sequence[str],
    address: str,
    scaled: tuple[str, str],
    stopping: asyncio.Event,
    report: Callable[[str], None],
) -> None:
    """Size one object by the metrics of its servers, and answer KEDA, until `stopping`; raises AllocatorError.

    It begins with the replicas that serve. Where no server answers yet, it begins with the safe size.
    """
    read = read_servers(metrics, slo_s=config.slo_s)
    now = await asyncio.to_thread(read)
    found = round(sum(counts.ready + counts.warming for counts in now.values())) or config.safe_replicas
    first = min(max(found, config.min_replicas), config.max_replicas)
    controller = make_controller(config, replicas=first)
    targets = Targets({scaled: first})
    server, port = await start_scaler(targets, address)
    actuator = TargetsActuator(targets, scaled, asyncio.get_running_loop())
    loop = AllocationLoop(config, controller, Telemetry(read), actuator)
    with loop:
        report(f"scaling {'/'.join(scaled)} from {first} replicas; KEDA asks at port {port}")
        await stopping.wait()
    await server.stop(None)
