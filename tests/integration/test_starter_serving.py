"""The whole product: `cloudcomplete serve` with the starter model in a process of its own, asked over gRPC."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudcomplete.own_server import OwnServer, serve_command
from loadtest.counters import CounterSource
from server.client import AsyncClient, Client
from server.errors import DeadlineError, InvalidRequestError

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "server" / "prompt.py").read_text()
AT = SOURCE.index("    extension = EXTENSIONS") + len("    extension = EXTENSIONS")
BEFORE, AFTER = SOURCE[:AT], SOURCE[AT:]


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    # The model's own answers are meant here, not those of the completion cache.
    with OwnServer(serve_command(["--set", "cache.is_enabled=false"])) as server:
        yield server


@pytest.fixture(scope="module")
def address(server: OwnServer) -> str:
    return server.address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_a_real_completion_streams_and_counts_its_tokens(client: Client) -> None:
    with client.stream(BEFORE, AFTER, path="server/prompt.py", max_tokens=24) as stream:
        texts = list(stream)
    completion = stream.completion
    assert completion is not None
    assert len(texts) > 1
    assert "".join(texts) == completion.text
    usage = completion.usage
    assert usage.num_prompt_tokens > 100
    assert 0 < usage.first_token_s <= usage.total_s
    assert completion.source == "model"
    if completion.finish_reason == "length":
        assert usage.num_generated_tokens >= 24  # those that wrote the text before the cursor again count, too


def test_the_same_question_has_the_same_answer_and_a_seed_repeats_a_random_one(client: Client) -> None:
    def ask(**options: float) -> str:
        return client.complete(BEFORE, AFTER, max_tokens=16, **options).text  # type: ignore[arg-type]

    assert ask() == ask()
    assert ask(temperature=1.0, seed=7) == ask(temperature=1.0, seed=7)
    assert len({ask(temperature=1.5, seed=seed) for seed in range(4)}) > 1


def test_typing_on_reuses_almost_all_of_the_prompt(client: Client) -> None:
    path = "reuse/prompt.py"
    client.complete(BEFORE, AFTER, path=path, max_tokens=4)
    usage = client.complete(BEFORE + ".get", AFTER, path=path, max_tokens=4).usage
    assert usage.num_reused_tokens >= usage.num_prompt_tokens - 8


def test_the_servers_counters_are_the_sum_of_what_answers_tell_and_of_what_was_given_up(
    client: Client, server: OwnServer
) -> None:
    source = CounterSource(server.metrics_url)
    before = asyncio.run(source.read_idle())
    usages = [client.complete(BEFORE[:at], AFTER, max_tokens=8).usage for at in (300, 304, 1000)]
    told = sum(each.num_prompt_tokens - each.num_reused_tokens + each.num_generated_tokens for each in usages)
    between = asyncio.run(source.read_idle())
    # Rejected tokens of drafts are computed too: at most 7 in each of the steps.
    assert 0 <= between.num_computed_tokens - before.num_computed_tokens - told <= 3 * 8 * 7
    with client.stream(BEFORE[:600], AFTER, max_tokens=500) as stream:
        next(stream)
    after = asyncio.run(source.read_idle())
    assert 0 < after.num_computed_tokens - between.num_computed_tokens < len(BEFORE) + len(AFTER) + 500


def test_more_requests_than_slots_are_all_served_when_nobody_waits_for_them(address: str) -> None:
    client = Client(address, is_background=True)

    def ask(number: int) -> int:
        return client.complete(f"value_{number} = ", max_tokens=8).usage.num_generated_tokens

    with ThreadPoolExecutor(40) as pool:
        assert all(count >= 1 for count in pool.map(ask, range(40)))
    client.close()


def test_requests_that_are_given_up_leave_room_for_others(address: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(address, is_background=True) as client:
            streams = [client.stream(f"def f{number}():\n    ", max_tokens=128) for number in range(32)]
            await asyncio.gather(*(anext(stream, None) for stream in streams))
            started_s = time.monotonic()
            await asyncio.gather(*(stream.aclose() for stream in streams))
            await client.complete("x = ", max_tokens=1)
            assert time.monotonic() - started_s < 5

    asyncio.run(scenario())


def test_a_deadline_is_kept_and_the_next_request_served(client: Client) -> None:
    with pytest.raises(DeadlineError):  # encoding so much new text takes longer than that on any machine
        client.complete("# unlike any other\n" + SOURCE * 3, max_tokens=1024, timeout_s=0.002)
    assert client.complete("x", max_tokens=1).usage.num_generated_tokens >= 1


def test_a_prompt_longer_than_the_context_is_cut_away_from_the_cursor_and_counted(client: Client) -> None:
    long = "".join(f"name_{number} = {number}\n" for number in range(5000))
    completion = client.complete(long + "def last(", ")\n" + long, max_tokens=8)
    assert completion.usage.num_dropped_tokens > 0
    assert completion.usage.num_prompt_tokens > 500


def test_empty_text_is_completed_like_any_other(client: Client) -> None:
    assert client.complete("", "", max_tokens=4).usage.num_generated_tokens >= 1


@pytest.mark.parametrize(
    "before", ["s = '🙂é世", "\ufeffx = ", "a\r\nb\r\n", "<|fim_middle|> <|endoftext|> x = ", "\x00"]
)
def test_unusual_text_is_served(client: Client, before: str) -> None:
    text = client.complete(before, "\n", max_tokens=8, temperature=2.0, seed=1).text
    assert text.encode().decode() == text


def test_a_stop_text_never_appears(client: Client) -> None:
    whole = client.complete(BEFORE, AFTER, max_tokens=24).text
    stop = whole[len(whole) // 2 :][:2]
    stopped = client.complete(BEFORE, AFTER, max_tokens=24, stop=[stop])
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_a_bad_request_leaves_the_server_serving(client: Client) -> None:
    with pytest.raises(InvalidRequestError):
        client.complete("x", top_p=0.0)
    assert client.complete("x", max_tokens=1).usage.num_generated_tokens >= 1


def test_the_command_completes_a_place_of_a_file(address: str) -> None:
    line = BEFORE.count("\n") + 1
    column = len(BEFORE) - BEFORE.rfind("\n") - 1
    command = [sys.executable, "-m", "cloudcomplete", "complete", "server/prompt.py"]
    done = subprocess.run(
        [*command, "--line", str(line), "--column", str(column), "--server", address, "--stream", "--max-tokens", "16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
