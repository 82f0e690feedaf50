"""What a client, a disk or a store may do wrong, through a whole server: a clear status, and the server goes on."""

import time
from pathlib import Path

import pytest

from cache.completion_cache import CompletionCache
from cache.config import CacheConfig
from server.client import Client
from server.config import ServerConfig
from server.errors import InvalidRequestError
from tests.server.counting_engine import CountingEngine, expected_text
from tests.server.in_process_server import InProcessServer
from tests.server.test_answers import ask
from tests.server.test_completer import Rig

TEN_MEGABYTES = "x = 1\n" * 1_700_000


def test_a_document_of_ten_megabytes_is_refused_with_the_limits_name_and_the_next_is_answered() -> None:
    with InProcessServer(CountingEngine()) as server, Client(server.address) as client:
        with pytest.raises(InvalidRequestError, match=r"raise server\.max_message_bytes"):
            client.complete(TEN_MEGABYTES)
        with client.session(max_tokens=2) as session:
            session.open(TEN_MEGABYTES, len(TEN_MEGABYTES))
            with pytest.raises(InvalidRequestError, match=r"raise server\.max_message_bytes"):
                next(session)
        assert client.complete("7", max_tokens=2).text == expected_text("7", 2)


def test_a_document_of_ten_megabytes_is_served_where_the_limits_allow_it() -> None:
    limits = {"max_message_bytes": 16_000_000, "max_text_bytes": 12_000_000, "session_bytes": 64_000_000}
    with InProcessServer(CountingEngine(), **limits) as server, Client(server.address) as client:
        with client.session(max_tokens=2) as session:
            state = session.open(TEN_MEGABYTES, len(TEN_MEGABYTES))
            assert next(update.text for update in session if update.state == state and update.completion) == "2 3 "
            edited = session.edit(len(TEN_MEGABYTES), len(TEN_MEGABYTES), "7")
            assert next(update.text for update in session if update.state == edited and update.completion) == "8 9 "
        assert client.complete("7", max_tokens=2).text == expected_text("7", 2)


def test_binary_text_ends_in_an_answer_or_a_clear_refusal_and_the_next_is_answered() -> None:
    binary = bytes(range(256)).decode("latin-1") * 20
    with InProcessServer(CountingEngine()) as server, Client(server.address) as client:
        assert client.complete(binary, max_tokens=1).finish_reason == "length"
        with pytest.raises(InvalidRequestError):
            client.complete("lone \udcff surrogate")
        with client.session(max_tokens=2) as session:
            session.open(binary, 0)
            update = next(session)
            assert update.needs_text
            assert "binary files have no completions" in str(update.error)
            state = session.open("7", 1)
            assert next(one.text for one in session if one.state == state and one.completion) == "8 9 "


@pytest.mark.parametrize("damage", ["cut off", "older", "noise"])
def test_a_cache_file_that_cannot_be_used_is_set_aside_and_the_server_answers(tmp_path: Path, damage: str) -> None:
    def sources() -> list[str]:
        cache = CompletionCache(CacheConfig(directory=str(tmp_path), snapshot_s=0.0))
        engine = CountingEngine()
        try:
            return [ask(Rig(engine, ServerConfig(trim="off"), cache), "x = 7")[1] for _ in range(2)]
        finally:
            cache.close()
            engine.close(timeout_s=1)

    assert sources() == ["model", "memory"]
    [file] = [one for one in tmp_path.iterdir() if one.suffix in (".sqlite", ".db", ".sqlite3")]
    content = file.read_bytes()
    if damage == "cut off":
        file.write_bytes(content[: len(content) // 3])
    elif damage == "older":  # the version is the header's user version, at byte 60
        file.write_bytes(content[:60] + b"\0\0\0\x63" + content[64:])
    else:
        file.write_bytes(b"\xa5" * 5000)
    assert sources() == ["model", "memory"]
    assert sources()[0] == "shared"


def test_one_tenants_session_and_work_ahead_are_nothing_to_another() -> None:
    engine = CountingEngine()
    rig = Rig(engine, ServerConfig(trim="off", chunk_interval_s=0.0))
    lines = "first = 7\nsecond = 7\nfirst = 7\nsecond = "
    fields = {"session_id": "s", "sampling": {"max_tokens": 12, "temperature": 0.0}}
    assert ask(rig, lines, tenant="a", **fields)[1] == "model"
    time.sleep(0.05)
    for before in (lines, lines + "7", lines + "8"):
        assert ask(rig, before, tenant="b", **fields)[1] in ("model", "prefetch", "session")
    asked_by_b = [one for one in engine.seen if one.tenant == "b"]
    assert asked_by_b[0].before == lines
    assert asked_by_b[0].draft == ""
    engine.close(timeout_s=1)
