"""Deployment choices of the server."""

from typing import Any

import msgspec
import pytest

from server.config import ServerConfig


def test_the_server_listens_on_loopback_unless_told_otherwise() -> None:
    assert ServerConfig().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grpc_port": 70_000}, "grpc_port is 70000; expected 0 (any free port) to 65535"),
        ({"max_in_flight": 0}, "max_in_flight is 0; expected a number above 0"),
        ({"default_deadline_s": float("nan")}, "default_deadline_s is nan; expected a number above 0"),
        ({"metrics_port": -1}, "metrics_port is -1; expected 0 (none) to 65535"),
        ({"chunk_interval_s": -1}, "chunk_interval_s is -1.0; expected 0 or more seconds"),
        ({"drain_s": -1}, "drain_s is -1.0; expected 0 or more seconds"),
        ({"greatest_max_tokens": 10}, "default_max_tokens is 64; expected at most greatest_max_tokens, which is 10"),
        ({"step_lines": 200}, "step_lines is 200; expected at most after_lines, which is 128"),
        ({"before_chars": 5000}, "before_chars is 5000; expected at least twice step_chars, which is 4096"),
        ({"prefetch_budget": "guessed"}, "Invalid enum value 'guessed' - at `$.prefetch_budget`"),
        ({"grpc_prot": 1}, "unknown field `grpc_prot`"),
    ],
)
def test_values_that_cannot_hold_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(fields, ServerConfig)
    assert message in str(raised.value)
