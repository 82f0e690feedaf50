"""`cloudcomplete replay`, against the counting server and against dialects that answer as they are told."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cloudcomplete import own_server
from cloudcomplete.commands import replay as command
from loadtest import dialects
from loadtest.dialects import Query, Reply
from loadtest.editing_trace import Patch
from tests.cloudcomplete.shell import Shell
from tests.loadtest.handmade_trace import encode, history_of, typed
from tests.loadtest.timed_dialect import Answer, TimedDialect
from tests.loadtest.virtual_time import run_virtual
from tests.server.counting_engine import CountingEngine
from tests.server.in_process_server import InProcessServer
from tests.server.test_metrics import free_port

COUNTING_SERVER = [sys.executable, str(Path(__file__).parents[1] / "server" / "counting_server.py")]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Write a history that counts from 1 to 9, so that the counting server is right."""
    path = tmp_path / "trace.json"
    path.write_bytes(encode(history_of(typed("1 2 3 4 5 6 7 8 9", gap_s=1.0))))
    return path


def script(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Query], Answer]) -> TimedDialect:
    """Let the command ask a dialect in virtual time."""
    dialect = TimedDialect(answer)
    monkeypatch.setattr(asyncio, "run", run_virtual)
    monkeypatch.setattr(dialects, "open_dialect", lambda name, server, has_client_cache: dialect)
    return dialect


def table(out: str) -> dict[str, str]:
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if len(line.split()) == 2}


def test_a_trace_is_typed_over_the_wire_and_the_result_written(
    shell: Shell, trace: Path, tmp_path: Path, address: str
) -> None:
    out = tmp_path / "out.json"
    options = ("--max-tokens", 4, "--json", out, "--plots", tmp_path / "plots", "--path", "count.py")
    done = shell("replay", trace, "--server", address, "--speed", 20, *options)
    assert (done.code, done.err) == (0, "")
    shown = table(done.out)
    assert (shown["keystrokes"], shown["users"], shown["errors"]) == ("17", "1", "0")
    assert float(shown["on_time_share"]) > 0.5
    assert "user 0: 17 keystrokes from 0 on of 17" in done.out
    written = json.loads(out.read_text())
    assert written["command"] == (
        f"cloudcomplete replay {trace} --server {address} --dialect grpc --users 1 --speed 20.0 --seed 0 "
        "--max-tokens 4 --path count.py"
    )
    assert len(written["rows"]) == 17
    assert {row["source"] for row in written["rows"]} <= {"model", ""}
    assert written["headline"]["matches_next_5_chars_without_model_share"] is None
    for name in ("latency", "sources"):
        assert ElementTree.parse(tmp_path / "plots" / f"{name}.svg") is not None


def test_without_a_server_one_is_started_and_stopped(
    shell: Shell, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_server, "serve_command", lambda: COUNTING_SERVER)
    done = shell("replay", trace, "--keystrokes", 3, "--speed", 20)
    assert (done.code, done.err) == (0, "")
    shown = table(done.out)
    assert shown["keystrokes"] == "3"
    assert float(shown["tokens_computed_per_keystroke"]) >= 1


def test_what_cancelled_answers_cost_is_read_from_the_servers_metrics(shell: Shell, trace: Path) -> None:
    engine, port = CountingEngine(is_gated=True), free_port()
    url = f"http://127.0.0.1:{port}"
    with InProcessServer(engine, metrics_port=port) as server:
        done = shell("replay", trace, "--server", server.address, "--metrics", url, "--speed", 20)
    assert done.code == 1  # no keystroke was answered
    shown = table(done.out)
    assert shown["cancelled_share"] == "1"
    assert float(shown["tokens_computed_per_keystroke"]) == pytest.approx(1.0)  # each adds a character to the last
    assert done.err == ("cloudcomplete: none of 17 keystrokes was answered; all were cancelled before any text came\n")


def test_the_editors_cache_can_be_put_in_front(shell: Shell, tmp_path: Path, address: str) -> None:
    path, out = tmp_path / "trace.json", tmp_path / "out.json"
    path.write_bytes(encode(history_of(typed("12 13 14 15 16", gap_s=1.0))))
    done = shell("replay", path, "--server", address, "--client-cache", "--speed", 20, "--verify", "--json", out)
    assert (done.code, done.err) == (0, "")
    written = json.loads(out.read_text())
    assert written["headline"]["answered_without_model_share"] > 0
    assert written["headline"]["verified_answers"] > 0
    assert written["headline"]["matches_line_without_model_share"] is not None
    assert written["command"].endswith("--client-cache --verify")


def test_the_same_seed_types_the_same(shell: Shell, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for seed in (3, 3, 4):
        dialect = script(monkeypatch, lambda query: Answer([(0.0, "x")]))
        assert shell("replay", trace, "--server", "h:1", "--users", 2, "--keystrokes", 4, "--seed", seed).code == 0
        queries = sorted((query.session_id, len(query.before), query.before) for _, query in dialect.asked)
        asked.append([(session_id[len("replay-0") :], before) for session_id, _, before in queries])
    assert asked[0] == asked[1] != asked[2]


def test_a_server_that_dies_in_the_middle_is_told_plainly(
    shell: Shell, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Answer(reply=Reply(error="nobody there", error_kind="lost"))
    script(monkeypatch, lambda query: Answer([(0.0, "x")]) if len(query.before) < 9 else lost)
    out = tmp_path / "out.json"
    done = shell("replay", trace, "--server", "h:1", "--json", out)
    assert done.code == 1
    assert done.out.startswith("PARTIAL: ")
    assert done.err == (
        "cloudcomplete: given up after 13 of 17 keystrokes: 5 answers in a row were lost; the last: nobody there\n"
    )
    written = json.loads(out.read_text())
    assert (written["partial"], written["headline"]["errors"], written["headline"]["keystrokes"]) == (True, 5, 13)


def test_a_real_server_that_stops_in_the_middle_ends_the_replay(shell: Shell, trace: Path) -> None:
    with InProcessServer(CountingEngine()) as server:
        stopping = server.begin(stop_after(server, 0.3))
        done = shell("replay", trace, "--server", server.address, "--speed", 10)
        stopping.result(10)
    assert done.code == 1
    assert "5 answers in a row were lost" in done.err
    assert done.err.count("\n") == 1


async def stop_after(server: InProcessServer, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    await server.stop(drain_s=0.0)


def test_a_replay_without_any_answer_fails(shell: Shell, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, lambda query: Answer(reply=Reply(error="HTTP status 501", error_kind="refused")))
    done = shell("replay", trace, "--server", "h:1")
    assert done.code == 1
    assert "error, refused: 17 x HTTP status 501" in done.out
    assert done.err == "cloudcomplete: none of 17 keystrokes was answered; the first error: HTTP status 501\n"


def test_answers_that_could_not_be_verified_fail(shell: Shell, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, lambda query: Answer([(0.0, "x")], Reply(source="session", is_from_model=False)))
    done = shell("replay", trace, "--server", "h:1", "--verify")
    assert done.code == 1
    assert done.err.startswith(
        "cloudcomplete: 17 answers could not be verified; asked afresh, the server answered from"
    )


def test_an_interrupt_shows_what_was_done(
    shell: Shell, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(query: Query) -> Answer:
        if len(query.before) == 7:
            signal.raise_signal(signal.SIGINT)
        return Answer([(0.1, "x")])

    dialect = script(monkeypatch, answer)
    out = tmp_path / "out.json"
    done = shell("replay", trace, "--server", "h:1", "--json", out, "--verify")
    assert (done.code, done.err) == (130, "")
    assert done.out.startswith("PARTIAL: ")
    assert "not typed: 11 of 17 keystrokes; the run was interrupted" in done.out
    written = json.loads(out.read_text())
    assert (written["partial"], written["headline"]["keystrokes"]) == (True, 6)
    assert len(dialect.asked) == 7


def test_an_interrupt_before_anything_was_done_shows_nothing(
    shell: Shell, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_type", interrupt)
    done = shell("replay", trace, "--server", "h:1")
    assert (done.code, done.out) == (130, "")


def test_the_command_has_help_that_tells_raw_from_cached(shell: Shell) -> None:
    done = shell("replay", "--help")
    assert done.code == 0
    assert "llama-infill, raw" in done.out
    assert "--client-cache" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--users", "0"), "argument --users: expected a whole number above 0, got '0'"),
        (("--keystrokes", "-3"), "argument --keystrokes: expected a whole number above 0, got '-3'"),
        (("--max-tokens", "many"), "argument --max-tokens: expected a whole number above 0, got 'many'"),
        (("--seed", "x"), "argument --seed: expected a whole number from 0 on, got 'x'"),
        (("--speed", "0"), "argument --speed: expected a number above 0, got '0'"),
        (("--speed", "inf"), "argument --speed: expected a number above 0, got 'inf'"),
        (("--speed", "fast"), "argument --speed: expected a number above 0, got 'fast'"),
        (("--dialect", "morse"), "'morse' is no dialect; expected one of: grpc, llama-infill"),
        (("--dialect", "llama-infill"), "--dialect llama-infill needs --server: only a grpc server can be started"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(shell: Shell, trace: Path, options: tuple[str, ...], message: str) -> None:
    done = shell("replay", trace, *options)
    assert done.code == 2
    assert done.err.startswith(f"cloudcomplete replay: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "{trace}/out"), "cannot write the results to {trace}/out: Not a directory; "),
        (("--plots", "{trace}"), "cannot write files to {trace}: File exists; "),
        (("--server", "127.0.0.1:1", "--metrics", "h:1"), "the metrics' address is 'h:1'; expected http://HOST:PORT"),
        (("--server", "nowhere"), "the server address is 'nowhere'; expected HOST:PORT"),
        (("--server", "http://h:1"), "the server address is 'http://h:1'; grpc expected HOST:PORT"),
        (
            ("--dialect", "llama-infill", "--server", "h:1"),
            "the server address is 'h:1'; llama-infill expected http://",
        ),
        (
            ("--keystrokes", "18"),
            "18 consecutive keystrokes were asked for, but the trace has 17; ask for fewer",
        ),
    ],
)
def test_a_mistake_is_known_before_anything_is_typed(
    shell: Shell, trace: Path, options: tuple[str, ...], message: str
) -> None:
    done = shell("replay", trace, *(option.format(trace=trace) for option in options))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"cloudcomplete: {message.format(trace=trace)}")
    assert done.err.count("\n") == 1


def test_a_trace_that_is_none_is_refused(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(encode(history_of([(0, [Patch(0, 0, "ab")])]) | {"endContent": "abc"}))
    done = shell("replay", path)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"cloudcomplete: {path} does not reproduce its endContent: expected 3 characters, got 2")
