"""Which text of other files a request gets: of its own project, its own tenant, and the same at every keystroke."""

import logging
import time
from pathlib import Path

import pytest

from engine.types import ContextChunk, Request
from server.client import Client
from server.config import ServerConfig
from server.repositories import MAX_GIVEN_LINES, Repositories, around_cursor
from server.repository_snapshot import snapshot_path, take_snapshot, write_snapshot
from server.types import CompletionRequest
from tests.server.counting_engine import WAIT_S, CountingEngine
from tests.server.in_process_server import InProcessServer

PRICES = "def total_price(invoice, tax_rate):\n    return invoice.net_price * tax_rate\n"
BEFORE = "from prices import total_price\n\n" + "invoice.tax_rate = total_price(invoice, tax_rate)\n" * 10 + "x = "


def index(root: Path, files: dict[str, str], kept: Path, *, tenant: str = "") -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    snapshot, _ = take_snapshot(root, tenant=tenant)
    write_snapshot(snapshot_path(kept, tenant=tenant, root=root), snapshot)


def opened(kept: Path, **settings: object) -> Repositories:
    repositories = Repositories(ServerConfig(repository_directory=str(kept), **settings))  # type: ignore[arg-type]
    repositories.look()
    return repositories


def paths_for(repositories: Repositories, path: str, *, tenant: str = "", before: str = BEFORE) -> list[str]:
    request = CompletionRequest(before=before, path=path)
    return [chunk.path for chunk in repositories.context(request, tenant=tenant, max_tokens=2000)]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    index(
        tmp_path / "shop",
        {"lib/prices.py": PRICES, "lib/shop.py": BEFORE, "notes.py": "unrelated = 1\n"},
        tmp_path / "k",
    )
    return tmp_path / "k"


def test_the_chunks_like_the_code_around_the_cursor_are_taken(tmp_path: Path, kept: Path) -> None:
    repositories = opened(kept)
    for path in ("lib/shop.py", "./lib/shop.py", "lib\\shop.py", str(tmp_path / "shop/lib/shop.py"), "lib/new.py"):
        found = paths_for(repositories, path)
        assert "lib/prices.py" in found
        assert "notes.py" not in found
        assert (path == "lib/new.py") == ("lib/shop.py" in found)  # a file's own older text is never shown


def test_files_of_no_project_and_without_a_path_get_nothing(kept: Path) -> None:
    repositories = opened(kept)
    for path in ("", "elsewhere/shop.py", "/elsewhere/lib/shop.py", "new.py"):
        assert paths_for(repositories, path) == []


def test_where_two_projects_could_be_meant_none_is(tmp_path: Path, kept: Path) -> None:
    index(tmp_path / "fork", {"lib/prices.py": PRICES, "lib/shop.py": BEFORE}, kept)
    repositories = opened(kept)
    assert paths_for(repositories, "lib/shop.py") == []
    assert paths_for(repositories, str(tmp_path / "fork/lib/shop.py")) == ["lib/prices.py"]


def test_of_a_project_within_another_the_inner_one_is_meant(tmp_path: Path, kept: Path) -> None:
    index(tmp_path / "shop" / "inner", {"rates.py": PRICES, "own.py": "x\n"}, kept)
    assert paths_for(opened(kept), str(tmp_path / "shop/inner/own.py")) == ["rates.py"]


def test_a_tenant_sees_neither_another_one_s_text_nor_that_there_is_any(tmp_path: Path, kept: Path) -> None:
    index(tmp_path / "secret", {"lib/secret.py": PRICES, "lib/own.py": ""}, kept, tenant="a")
    repositories = opened(kept)
    assert paths_for(repositories, "lib/own.py", tenant="a") == ["lib/secret.py"]
    assert paths_for(repositories, "lib/own.py", tenant="b") == []
    assert "lib/secret.py" not in paths_for(repositories, "lib/own.py")
    assert paths_for(repositories, str(tmp_path / "secret/lib/own.py")) == []


def test_no_keystroke_changes_what_was_chosen(kept: Path) -> None:
    repositories = opened(kept)
    typed = "invoice.total = net_price(tax_rate)\nprice.unrelated"
    start = BEFORE[: BEFORE.rindex("\n") + 1] + "\n" * 3  # 16 lines: the edge of a step
    chosen = {tuple(paths_for(repositories, "lib/shop.py", before=start + typed[:end])) for end in range(len(typed))}
    assert len(chosen) == 1


def test_the_query_moves_in_steps_of_lines() -> None:
    lines = [f"line {number}" for number in range(40)]
    queries = {around_cursor("\n".join([*lines[:n], "x"]), "y\n" + "\n".join(lines[30:])) for n in range(16, 24)}
    assert len(queries) == 1
    assert queries.pop().split("\n")[:16] == lines[:16]


def test_what_is_chosen_is_in_order_and_fits(tmp_path: Path) -> None:
    files = {
        f"m{number:02}.py": "".join(f"price_{number} = price_{line}\n" for line in range(30)) for number in range(6)
    }
    index(tmp_path / "many", files, tmp_path / "k")
    request = CompletionRequest(before="price_1 = price_2\n" * 16, path="m00.py")
    context = opened(tmp_path / "k").context(request, tenant="", max_tokens=2000)
    assert len(context) > 1
    assert [chunk.path for chunk in context] == sorted(chunk.path for chunk in context)
    assert sum(len(chunk.text) for chunk in context) <= 1500


def test_files_that_a_client_sends_are_chosen_from_and_chunks_taken_as_they_are(kept: Path) -> None:
    neighbour = "unrelated = 1\n" * 100 + PRICES + "other = 2\n" * 100
    context = (ContextChunk(path="near.py", text=neighbour), ContextChunk(path="mine.py", text="as it is\n"))
    request = CompletionRequest(before=BEFORE, path="lib/shop.py", context=context)
    for directory in (kept, kept / "none"):
        chosen = opened(directory).context(request, tenant="", max_tokens=2000)
        assert chosen[-1] == context[1]
        near = next(chunk for chunk in chosen if chunk.path == "near.py")
        assert "total_price" in near.text
        assert near.text.count("\n") <= MAX_GIVEN_LINES
    newer = CompletionRequest(
        before=BEFORE, path="lib/shop.py", context=(ContextChunk(path="lib/prices.py", text="x\n"),)
    )
    assert opened(kept).context(newer, tenant="", max_tokens=2000) == newer.context  # what the client sent is newer


def test_switched_off_the_client_s_context_goes_as_it_came(kept: Path) -> None:
    context = (ContextChunk(path="near.py", text="line\n" * 500),)
    request = CompletionRequest(before=BEFORE, path="lib/shop.py", context=context)
    assert opened(kept, repository_context=False).context(request, tenant="", max_tokens=2000) == context


def test_a_new_index_is_taken_up_and_a_removed_one_forgotten(tmp_path: Path, kept: Path) -> None:
    repositories = opened(kept)
    index(tmp_path / "shop", {"lib/prices.py": "x = 1\n", "lib/rates.py": PRICES}, kept)
    repositories.look()
    assert paths_for(repositories, "lib/shop.py") == ["lib/rates.py"]
    for place in kept.iterdir():
        place.unlink()
    repositories.look()
    assert paths_for(repositories, "lib/shop.py") == []


def test_a_damaged_index_is_told_of_once_and_the_others_serve(
    tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (kept / "damaged.repository").write_bytes(b"cloudcomplete repository 1 0\nx")
    with caplog.at_level(logging.WARNING):
        repositories = opened(kept)
        repositories.look()
    assert [record.message.partition("damaged.repository")[2] for record in caplog.records] == [
        " is damaged or cut off; expected its checksum to hold; run `cloudcomplete index DIR` again"
    ]
    assert paths_for(repositories, "lib/shop.py") == ["lib/prices.py"]


def test_without_room_the_oldest_index_is_left_out(
    tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    time.sleep(0.02)
    index(tmp_path / "new", {"pkg/prices.py": PRICES, "pkg/own.py": ""}, kept)
    with caplog.at_level(logging.WARNING):
        repositories = opened(kept, repositories_bytes=400)
    assert f"no room for {tmp_path / 'shop'}, whose index is the oldest" in caplog.text
    assert paths_for(repositories, "pkg/own.py") == ["pkg/prices.py"]
    assert paths_for(repositories, "lib/shop.py") == []


def test_a_server_puts_it_ahead_of_the_prompt(kept: Path) -> None:
    engine = CountingEngine()
    with InProcessServer(engine, repository_directory=str(kept)) as server, Client(server.address) as client:
        client.wait_until_serving(timeout_s=WAIT_S)
        deadline_s = time.monotonic() + WAIT_S
        seen: list[Request] = []
        while not (seen and seen[-1].context) and time.monotonic() < deadline_s:
            client.complete(BEFORE + "7", "", path="lib/shop.py", max_tokens=1, is_fresh=True)
            seen = list(engine.seen)
        assert [chunk.path for chunk in seen[-1].context] == ["lib/prices.py"]
