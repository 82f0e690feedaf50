"""The gRPC face, through real connections: codes, metadata, reflection, and that cancelling reaches the engine."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server import wire
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.proto.cloudcomplete.v1 import completion_pb2_grpc
from tests.server.counting_engine import WAIT_S, CountingEngine
from tests.server.in_process_server import InProcessServer


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    engine = CountingEngine(is_gated=True)
    yield engine
    engine.close(timeout_s=0)


@pytest.fixture
def server(engine: CountingEngine) -> Iterator[InProcessServer]:
    with InProcessServer(engine, max_in_flight=2, max_message_bytes=20_000, max_text_bytes=10_000) as server:
        yield server


@pytest.fixture
def channel(server: InProcessServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def complete(channel: grpc.Channel, timeout: float = WAIT_S, **fields: Any) -> Any:
    return completion_pb2_grpc.CompletionServiceStub(channel).Complete(pb.CompleteRequest(**fields), timeout=timeout)


def error_of(call: Any) -> Any:
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    return raised.value


def test_the_answer_streams_and_ends_with_reason_usage_timings_source_and_id(
    channel: grpc.Channel, engine: CountingEngine
) -> None:
    call = complete(channel, prefix="7", suffix="\n", request_id="mine", sampling=pb.Sampling(max_tokens=3))
    engine.allow()
    first = next(call)
    assert (first.text, first.finish_reason, first.HasField("usage")) == ("8 ", pb.FINISH_REASON_UNSPECIFIED, False)
    engine.allow(2)
    second, last = list(call)
    assert (second.text, last.text) == ("9 ", "10 ")
    assert (last.finish_reason, last.source, last.request_id) == (pb.FINISH_REASON_LENGTH, pb.SOURCE_MODEL, "mine")
    assert last.usage == pb.Usage(prompt_tokens=2, generated_tokens=3)
    assert last.timings == pb.Timings(queue_s=0.25, first_token_s=0.5, total_s=0.75)


def test_a_stop_text_ends_the_answer_with_the_reason_stop(channel: grpc.Channel, engine: CountingEngine) -> None:
    engine.allow(9)
    chunks = list(complete(channel, prefix="7", sampling=pb.Sampling(stop=["10"])))
    assert "".join(chunk.text for chunk in chunks) == "8 9 "
    assert chunks[-1].finish_reason == pb.FINISH_REASON_STOP


def test_a_request_without_an_id_gets_one(channel: grpc.Channel, engine: CountingEngine) -> None:
    engine.allow()
    [last] = complete(channel, sampling=pb.Sampling(max_tokens=1))
    assert len(last.request_id) == 32


def test_bad_parameters_are_invalid_arguments(channel: grpc.Channel) -> None:
    error = error_of(complete(channel, sampling=pb.Sampling(temperature=float("nan"))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "temperature is nan; expected 0 (greedy) to 2; 0 is greedy"


def test_bytes_that_are_no_message_are_an_invalid_argument_and_not_unknown(channel: grpc.Channel) -> None:
    call: Any = channel.unary_stream  # its type stubs insist on serialisers
    error = error_of(call("/cloudcomplete.v1.CompletionService/Complete")(b"\x12\x02\xc3\x28"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a CompleteRequest" in error.details()


def test_what_the_engine_cannot_serve_is_an_invalid_argument(channel: grpc.Channel) -> None:
    error = error_of(complete(channel, prefix="unservable"))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "the prompt cannot be served")


def test_a_full_server_says_when_to_try_again(channel: grpc.Channel, engine: CountingEngine) -> None:
    running = [complete(channel, prefix="7", sampling=pb.Sampling(max_tokens=1)) for _ in range(2)]
    engine.wait_until_running(2)
    error = error_of(complete(channel))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())[wire.RETRY_AFTER_KEY]) > 0
    engine.allow()
    assert [chunk.text for call in running for chunk in call] == ["8 ", "8 "]


def test_a_message_that_is_too_large_is_refused_by_grpc_itself(channel: grpc.Channel) -> None:
    error = error_of(complete(channel, prefix="x" * 30_000))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert wire.RETRY_AFTER_KEY not in dict(error.trailing_metadata())


def test_a_defect_is_internal_and_names_an_incident_instead_of_its_reason(
    channel: grpc.Channel, server: InProcessServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a secret of the code")

    monkeypatch.setattr(server.app.completer, "complete", fail)
    error = error_of(complete(channel))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details().startswith("the request failed unexpectedly; see incident ")
    assert "a secret of the code" not in error.details()
    assert error.details().split()[6] in caplog.text
    assert "a secret of the code" in caplog.text


def test_a_client_that_cancels_frees_the_engine(channel: grpc.Channel, engine: CountingEngine) -> None:
    call = complete(channel, prefix="7")
    engine.wait_until_running(1)
    call.cancel()
    engine.wait_until_empty()
    assert list(engine.ends.values()) == ["cancelled"]


def test_a_client_whose_deadline_passes_frees_the_engine(channel: grpc.Channel, engine: CountingEngine) -> None:
    error = error_of(complete(channel, timeout=0.1, prefix="7"))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    engine.wait_until_empty()
    assert list(engine.ends.values()) == ["cancelled"]


def test_a_client_that_closes_its_channel_frees_the_engine(server: InProcessServer, engine: CountingEngine) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = complete(channel, prefix="7")
        engine.wait_until_running(1)
    assert call.code() is grpc.StatusCode.CANCELLED
    engine.wait_until_empty()
    assert list(engine.ends.values()) == ["cancelled"]


def test_a_client_that_dies_frees_the_engine(server: InProcessServer, engine: CountingEngine) -> None:
    script = (
        "import sys; from server.client import Client; next(Client(sys.argv[1]).stream('7', timeout_s=float('inf')))"
    )
    with subprocess.Popen([sys.executable, "-c", script, server.address]) as process:
        engine.wait_until_running(1)
        process.kill()
    engine.wait_until_empty()
    assert list(engine.ends.values()) == ["cancelled"]


def test_reflection_lists_and_describes_the_service(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=wire.SERVICE_NAME),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests), timeout=WAIT_S)
    names = {service.name for service in listed.list_services_response.service}
    assert {wire.SERVICE_NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names
    [file] = described.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(file).package == "cloudcomplete.v1"


def test_the_contract_has_the_service_under_the_name_that_is_served() -> None:
    [service] = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == wire.SERVICE_NAME
    assert [method.name for method in service.methods] == ["Complete", "Session", "Feedback"]
