import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from orchestration.allocator.scaler import METRIC, Targets, start_scaler
from orchestration.proto import externalscaler_pb2 as pb
from orchestration.proto import externalscaler_pb2_grpc as pb_grpc

REFERENCE = pb.ScaledObjectRef(namespace="default", name="cloudcomplete")


@asynccontextmanager
async def scaler_client() -> AsyncIterator[tuple[Targets, Any]]:
    targets = Targets({("default", "cloudcomplete"): 3})
    server, port = await start_scaler(targets, "127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield targets, pb_grpc.ExternalScalerStub(channel)
    finally:
        await server.stop(None)


def test_keda_reads_the_target_and_what_it_is_measured_by() -> None:
    async def ask() -> None:
        async with scaler_client() as (targets, stub):
            spec = await stub.GetMetricSpec(REFERENCE)
            assert [(one.metricName, one.targetSize) for one in spec.metricSpecs] == [(METRIC, 1)]
            for target in (3, 5):
                await targets.set("default", "cloudcomplete", target)
                reply = await stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=REFERENCE, metricName=METRIC))
                assert [one.metricValue for one in reply.metricValues] == [target]
            assert (await stub.IsActive(REFERENCE)).result

    asyncio.run(ask())


def test_a_stream_tells_of_each_change_between_none_and_some() -> None:
    async def ask() -> list[bool]:
        seen = []
        async with scaler_client() as (targets, stub):
            async for reply in stub.StreamIsActive(REFERENCE):
                seen.append(reply.result)
                if len(seen) == 3:
                    break
                await targets.set("default", "cloudcomplete", 0 if reply.result else 2)
        return seen

    assert asyncio.run(ask()) == [True, False, True]


def test_an_object_or_a_metric_that_is_unknown_is_refused_and_the_next_call_served() -> None:
    async def ask() -> None:
        async with scaler_client() as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError, match="object default/other is not scaled here") as caught:
                await stub.IsActive(pb.ScaledObjectRef(namespace="default", name="other"))
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.aio.AioRpcError, match="metric 'load' is unknown; expected") as caught:
                await stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=REFERENCE, metricName="load"))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert (await stub.IsActive(REFERENCE)).result

    asyncio.run(ask())
