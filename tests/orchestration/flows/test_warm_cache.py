"""Flow `warm-cache`: what was asked is asked again, once, and what was indexed is read only where it changed."""

import asyncio
from pathlib import Path

import pytest

from orchestration.flows.errors import FlowInputError
from server.request_log import LoggedRequest, RequestLog
from server.types import CompletionRequest
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("prefect_home")]  # Prefect's own warnings


def write_log(path: Path) -> None:
    log = RequestLog(path, max_bytes=1 << 20)
    for before in ("1 ", "2 ", "1 ", "3 "):
        log.append("", CompletionRequest(before=before, path="a.py", request_id=before, session_id="s"))
    log.append("other", CompletionRequest(before="9 "))
    log.close()


def test_the_newest_different_requests_of_one_tenant_are_chosen(tmp_path: Path) -> None:
    from orchestration.flows.warm_cache import newest_requests

    write_log(tmp_path / "log")
    chosen = newest_requests(tmp_path / "log", tenant="", most=2)
    assert chosen == [LoggedRequest(tenant="", request=CompletionRequest(before=b, path="a.py")) for b in ("1 ", "3 ")]
    with pytest.raises(FlowInputError, match=r"there is no log of requests .*none; expected the file that server.requ"):
        newest_requests(tmp_path / "none", tenant="", most=2)


def test_a_running_server_is_asked_again_what_it_was_asked(tmp_path: Path) -> None:
    from orchestration.flows.warm_cache import ask, warm_cache

    write_log(tmp_path / "log")
    with InProcessServer(CountingEngine()) as server:
        result = asyncio.run(warm_cache.fn(log=str(tmp_path / "log"), server=server.address))
        assert result["requests"] == result["from_model"] == 3
        failing = [LoggedRequest(tenant="", request=CompletionRequest(before="1 " * 2_000_000))]
        assert ask(server.address, failing) == {"failed": 1}


def test_a_project_is_indexed_and_then_read_only_where_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestration.flows.warm_cache import warm_cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.py").write_text("def f():\n    return 1\n")
    result = asyncio.run(warm_cache.fn(repositories=[str(project)], server="127.0.0.1:1"))
    assert result == {"projects": 1, "files": 1}
    assert len(list((tmp_path / "cache").rglob("*.repository"))) == 1
    with pytest.raises(FlowInputError, match=r"none is no directory; expected a project's; correct `repositories`"):
        asyncio.run(warm_cache.fn(repositories=[str(tmp_path / "none")], server="127.0.0.1:1"))
