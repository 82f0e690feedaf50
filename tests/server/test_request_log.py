"""The log of requests: what comes in is in it, and nothing else."""

import asyncio
from pathlib import Path

import pytest

from server import app
from server.client import Client
from server.config import ServerConfig
from server.errors import StartError
from server.request_log import LoggedRequest, RequestLog, read_request_log
from server.types import CompletionRequest
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer


def test_what_was_appended_is_read_back_in_order_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "logs" / "requests", max_bytes=1 << 20)
    requests = [CompletionRequest(before=f"x{i} = ", path="a.py") for i in range(3)]
    for request in requests:
        log.append("t", request)
    log.close()
    log.close()
    assert list(read_request_log(tmp_path / "logs" / "requests")) == [
        LoggedRequest(tenant="t", request=request) for request in requests
    ]
    assert (tmp_path / "logs" / "requests").stat().st_mode & 0o777 == 0o600


def test_a_server_logs_what_clients_ask(tmp_path: Path) -> None:
    with (
        InProcessServer(CountingEngine(), request_log=str(tmp_path / "requests")) as server,
        Client(server.address) as client,
    ):
        client.complete("def f(", "", path="f.py", max_tokens=3)
    logged = list(read_request_log(tmp_path / "requests"))
    assert [(record.tenant, record.request.before, record.request.path) for record in logged] == [
        ("", "def f(", "f.py")
    ]


def test_a_log_that_cannot_be_written_is_said_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = ServerConfig(grpc_port=0, request_log=str(tmp_path / "file" / "requests"))
    with pytest.raises(StartError, match=r"server.request_log is .*requests, which cannot be written \(.*\); expected"):
        asyncio.run(app.build(config))
