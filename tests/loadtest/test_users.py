"""The load test's users against a server whose answers can be computed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.load_result import FAILED, FIRST_TEXT, NEVER_S, WHOLE
from loadtest.users import BurstUser, Figure, PatientUser, TypingUser, UserSettings, describe, difference, run_user
from server.client import AsyncClient
from server.errors import BusyError, UnavailableError
from tests.loadtest.handmade_trace import encode, history_of, typed
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer

ARRIVALS = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.0,48,1\n2023-11-16 18:17:03.05,30,2\n2023-11-16 18:17:03.1,11,3\n"
)


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    engine = CountingEngine()
    yield engine
    engine.close(timeout_s=0)


async def live(
    kind: type[TypingUser] | type[BurstUser] | type[PatientUser], settings: UserSettings, *, number: int, for_s: float
) -> list[Figure]:
    """Let one user live for a while, and return what it reported."""
    figures: list[Figure] = []
    async with AsyncClient(settings.address) as client:
        task = asyncio.create_task(run_user(kind(client, settings, number, figures.append)))
        await asyncio.wait([task], timeout=for_s)
        task.cancel()
        await task
    return figures


def test_a_typist_types_the_history_in_one_session_and_reports_every_wait(
    engine: CountingEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    trace.write_bytes(encode(history_of(typed("count = 1", gap_s=0.05), start="\n")))
    with InProcessServer(engine) as server:
        settings = UserSettings(address=server.address, typing_trace=str(trace), max_tokens=2)
        figures = asyncio.run(live(TypingUser, settings, number=0, for_s=1.0))
    waits = [figure for figure in figures if figure.kind == "wait"]
    keystrokes = [figure for figure in figures if figure.kind == "keystroke"]
    assert len(waits) == len(keystrokes) == 9
    assert not any(figure.error for figure in figures)
    assert {figure.name for figure in keystrokes} <= {
        "answered by model",
        "answered by session",
        "given up before its answer was whole",
    }
    assert {request.session for request in engine.seen} == {"typist-0-0"}
    assert engine.seen[0].before == "c"


def test_a_typist_who_never_gets_text_says_so_of_every_keystroke_but_the_open_one(tmp_path: Path) -> None:
    engine = CountingEngine(is_gated=True)
    trace = tmp_path / "trace.json"
    trace.write_bytes(encode(history_of(typed("abcd", gap_s=0.05), start="\n")))
    with InProcessServer(engine) as server:
        settings = UserSettings(address=server.address, typing_trace=str(trace))
        figures = asyncio.run(live(TypingUser, settings, number=0, for_s=0.6))
        never = [figure for figure in figures if figure.seconds == NEVER_S]
        assert (len(never), {figure.error for figure in never}) == (3, {"no text came at all"})
        engine.close(timeout_s=0)


def test_burst_users_send_the_whole_trace_between_them_and_do_not_wait(engine: CountingEngine, tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    path.write_text(ARRIVALS)
    with InProcessServer(engine) as server:
        settings = UserSettings(address=server.address, arrivals=str(path), duration_s=0.12, lanes=2)
        figures = [asyncio.run(live(BurstUser, settings, number=number, for_s=5)) for number in range(2)]
    assert [sum(figure.name == WHOLE for figure in each) for each in figures] == [2, 1]
    assert sorted(request.sampling.max_tokens for request in engine.seen) == [1, 2, 3]


def test_a_patient_user_asks_one_after_the_other_about_different_places(engine: CountingEngine) -> None:
    with InProcessServer(engine) as server:
        settings = UserSettings(address=server.address, max_tokens=2)
        figures = asyncio.run(live(PatientUser, settings, number=1, for_s=0.7))
    num_answers = sum(figure.name == WHOLE for figure in figures)
    assert num_answers == sum(figure.name == FIRST_TEXT for figure in figures) >= 2
    assert len({request.before for request in engine.seen}) >= num_answers


def test_a_refused_request_is_a_failure_of_its_kind() -> None:
    engine = CountingEngine(num_slots=1, max_waiting=0, is_gated=True)
    with InProcessServer(engine, max_in_flight=1) as server:

        async def scenario() -> list[Figure]:
            async with AsyncClient(server.address) as client:
                holding = client.stream("x", max_tokens=4)
                first = asyncio.ensure_future(anext(holding, None))
                await asyncio.to_thread(engine.wait_until_running, 1)
                settings = UserSettings(address=server.address)
                figures = await live(PatientUser, settings, number=0, for_s=0.1)
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                return figures

        figures = asyncio.run(scenario())
        engine.close(timeout_s=0)
    assert (figures[0].name, figures[0].error) == (FAILED, "no room (RESOURCE_EXHAUSTED)")


def test_errors_are_told_by_their_kind() -> None:
    assert describe(BusyError("17 wait", retry_after_s=1)) == "no room (RESOURCE_EXHAUSTED)"
    assert describe(UnavailableError("the server is draining; try later")) == "UnavailableError: the server is draining"


@pytest.mark.parametrize(
    ("old", "new", "edit"),
    [
        ("", "a", (0, 0, "a")),
        ("ab", "aab", (1, 1, "a")),
        ("aa", "a", (1, 2, "")),
        ("one\ntwo", "one\n2\ntwo", (4, 4, "2\n")),
        ("abc", "xyz", (0, 3, "xyz")),
        ("same", "same", (4, 4, "")),
    ],
)
def test_a_difference_makes_the_new_text_of_the_old_one(old: str, new: str, edit: tuple[int, int, str]) -> None:
    start, end, text = difference(old, new)
    assert (start, end, text) == edit
    assert old[:start] + text + old[end:] == new
