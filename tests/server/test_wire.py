"""The protobuf forms, and that the generated code is current."""

from pathlib import Path

import pytest

from engine.types import ContextChunk, Finish, Usage
from server import wire
from server.errors import InvalidRequestError
from server.proto.__main__ import PROTO, ROOT, generate
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.types import AnswerPart, CompletionPart, CompletionRequest, SamplingOptions


def test_a_request_survives_the_way_over_the_wire() -> None:
    request = CompletionRequest(
        before="def f():\n  retu",
        after="\n🙂",
        request_id="r1",
        path="src/a.py",
        language="python",
        context=(ContextChunk(path="b.py", text="x"), ContextChunk(path="c.py", text="y")),
        sampling=SamplingOptions(temperature=0.0, top_k=0, top_p=0.5, seed=0, max_tokens=7, stop=("\n", "#")),
        session_id="s1",
        sparse="on",
        is_fresh=True,
    )
    assert wire.decode_request(wire.encode_request(request).SerializeToString()) == request


def test_a_sampling_field_that_is_not_set_is_told_from_zero() -> None:
    assert wire.decode_request(b"").sampling == SamplingOptions()
    explicit = pb.CompleteRequest(sampling=pb.Sampling(temperature=0, max_tokens=0))
    assert wire.decode_request(explicit.SerializeToString()).sampling == SamplingOptions(temperature=0.0, max_tokens=0)


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x12\x02\xc3\x28"], ids=["no protobuf", "prefix not UTF-8"])
def test_bytes_that_are_no_request_are_refused(message: bytes) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"is not a CompleteRequest.*expected protobuf as in completion\.proto"
    ):
        wire.decode_request(message)


@pytest.mark.parametrize(
    "request_",
    [CompletionRequest(before="\ud800"), CompletionRequest(before="", sampling=SamplingOptions(top_k=2**40))],
)
def test_values_that_no_field_can_hold_are_refused_before_they_are_sent(request_: CompletionRequest) -> None:
    with pytest.raises(InvalidRequestError, match="the request cannot be sent"):
        wire.encode_request(request_)


def test_only_the_last_chunk_is_final_and_has_everything() -> None:
    delta = wire.encode_part(AnswerPart(request_id="r", text="a", logit_gap=0.25))
    assert not wire.is_final(delta)
    usage = Usage(
        num_prompt_tokens=5,
        num_reused_tokens=3,
        num_generated_tokens=2,
        num_dropped_tokens=1,
        queue_s=0.5,
        first_token_s=1.5,
        total_s=2.5,
    )
    finish = Finish(state="finished", reason="length", usage=usage)
    final = wire.encode_part(AnswerPart(request_id="r", text="b", finish=finish, source="session", num_typed=4))
    assert wire.is_final(final)
    parts = [wire.decode_part(delta), wire.decode_part(final)]
    completion = wire.decode_completion(parts, final)
    assert [(part.text, part.logit_gap) for part in completion.parts] == [("a", 0.25), ("b", None)]
    assert (completion.text, completion.finish_reason, completion.source) == ("ab", "length", "session")
    assert completion.num_typed == 4
    assert (completion.usage, completion.request_id) == (usage, "r")


def test_what_a_newer_server_says_is_understood_as_far_as_possible() -> None:
    final = pb.CompletionChunk.FromString(bytes([0x10, 99, 0x28, 98]))  # finish_reason 99, source 98
    assert wire.is_final(final)
    completion = wire.decode_completion([CompletionPart(text="text", logit_gap=None)], final)
    assert (completion.finish_reason, completion.source) == ("stop", "unknown")


def test_the_generated_code_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    generate(tmp_path)
    generated = sorted((tmp_path / PROTO).parent.iterdir())
    assert len(generated) == 3
    for path in generated:
        assert path.read_text() == (ROOT / PROTO).with_name(path.name).read_text(), "run `make proto`"
