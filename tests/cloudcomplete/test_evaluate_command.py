"""`cloudcomplete evaluate`, against the counting server and against a dialect that answers as it is told."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cloudcomplete import own_server
from cloudcomplete.commands import evaluate as command
from loadtest import dialects, evaluate
from loadtest.dialects import Reply
from loadtest.evaluate import MOST_TOKENS
from tests.cloudcomplete.shell import Shell
from tests.loadtest.scripted_dialect import Script, ScriptedDialect
from tests.server.counting_engine import expected_text

COUNTING_SERVER = [sys.executable, str(Path(__file__).parents[1] / "server" / "counting_server.py")]


def write_rows(path: Path, **solutions: str) -> Path:
    rows = [
        {"prompt": prompt, "suffix": "", "canonical_solution": solution, "language": "Python"}
        for prompt, solution in solutions.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", a="1", b="2", c="3", d="4")


def script(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Script], *, otherwise: Script = "") -> ScriptedDialect:
    dialect = ScriptedDialect(answers, otherwise=otherwise)
    monkeypatch.setattr(evaluate, "_RETRY_S", 0.0)
    monkeypatch.setattr(dialects, "open_dialect", lambda name, server, *, has_client_cache: dialect)
    return dialect


def test_a_server_is_asked_over_the_wire_and_the_result_written(shell: Shell, tmp_path: Path, address: str) -> None:
    right = expected_text("x 7", MOST_TOKENS)  # so long that the limit of tokens is where the counting ends
    rows = write_rows(tmp_path / "rows.jsonl", **{"x 7": right, "y 7": "8 9", "unservable": "1"})
    out = tmp_path / "out.json"
    done = shell("evaluate", rows, "--server", address, "--json", out, "--plots", tmp_path / "plots")
    assert (done.code, done.err) == (0, "")
    shown = {line.split()[0]: line.split()[1] for line in done.out.splitlines() if len(line.split()) == 2}
    assert (shown["exact_match"], shown["exact_match_python"]) == ("0.3333", "0.3333")
    assert (shown["rows"], shown["errors"], shown["skipped"]) == ("3", "1", "0")
    assert "error, counted as wrong: 1 x the prompt cannot be served" in done.out
    written = json.loads(out.read_text())
    assert written["command"] == f"cloudcomplete evaluate {rows} --server {address} --dialect grpc --concurrency 1"
    assert [row["is_exact_match"] for row in written["rows"]] == [True, False, False]
    assert written["headline"]["first_text_p50_ms"] > 0
    for name in ("latency", "sources"):
        assert ElementTree.parse(tmp_path / "plots" / f"{name}.svg") is not None


def test_without_a_server_one_is_started_and_stopped(shell: Shell, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_server, "serve_command", lambda: COUNTING_SERVER)
    done = shell("evaluate", rows, "--limit", 1)
    assert (done.code, done.err) == (0, "")
    assert "rows: 1 of the 4 usable ones, a random sample that is always the same" in done.out


def test_lines_that_cannot_be_used_are_shown(shell: Shell, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, {"a": "1", "b": "2", "c": "3"})
    rows.write_text(rows.read_text() + '{"prompt": "p", "suffix": ""}\nnot json\n')
    done = shell("evaluate", rows, "--server", "h:1")
    assert done.code == 0
    assert "skipped: 1 x Object missing required field `canonical_solution` (line 5)" in done.out
    assert "skipped: 1 x not JSON (line 6)" in done.out


def test_a_server_that_dies_is_told_plainly_with_what_was_done(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialect = script(monkeypatch, {"0": "x", "1": "x"}, otherwise=Reply(error="nobody there", error_kind="lost"))
    rows = write_rows(tmp_path / "rows.jsonl", **{str(i): "x" for i in range(50)})
    out = tmp_path / "out.json"
    done = shell("evaluate", rows, "--server", "h:1", "--json", out)
    assert done.code == 1
    assert done.out.startswith("PARTIAL: the run ended early; these are the figures of what was done\n")
    assert done.err == (
        "cloudcomplete: given up after 5 of 50 rows: 3 answers in a row were lost; the last: nobody there\n"
    )
    written = json.loads(out.read_text())
    assert (written["partial"], written["headline"]["rows"], written["headline"]["errors"]) == (True, 5, 3)
    assert not dialect.is_open


def test_a_run_without_any_answer_fails(shell: Shell, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, {}, otherwise=Reply(error="HTTP 501", error_kind="refused"))
    done = shell("evaluate", rows, "--server", "h:1")
    assert done.code == 1
    assert "error, counted as wrong: 4 x HTTP 501" in done.out
    assert done.err == "cloudcomplete: none of 4 rows was answered; the first error: HTTP 501\n"


def test_an_interrupt_shows_what_was_done(
    shell: Shell, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {"a": "1"})
    ask_all = command._ask_all

    def interrupted(*arguments: object) -> None:
        ask_all(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_ask_all", interrupted)
    done = shell("evaluate", rows, "--server", "h:1", "--json", tmp_path / "out.json")
    assert done.code == 130
    assert "exact_match" in done.out
    assert json.loads((tmp_path / "out.json").read_text())["headline"]["rows"] == 4


def test_with_a_client_cache_the_same_question_is_asked_once(shell: Shell, tmp_path: Path, address: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "7", "suffix": "", "canonical_solution": "8"}\n' * 2)
    done = shell("evaluate", rows, "--server", address, "--client-cache", "--json", tmp_path / "out.json")
    assert done.code == 0
    assert "first_text: 1 answers came without the model" in done.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["source"] for row in written["rows"]] == ["model", "client cache"]
    assert written["command"].endswith(" --client-cache")


def test_rows_are_asked_at_once_when_told_so(shell: Shell, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect = script(monkeypatch, {}, otherwise=["a", "b", "c"])
    assert shell("evaluate", rows, "--server", "h:1", "--concurrency", 3).code == 0
    assert dialect.most_running == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "0"), "argument --limit: expected a whole number above 0, got '0'"),
        (("--concurrency", "x"), "argument --concurrency: expected a whole number above 0, got 'x'"),
        (("--dialect", "morse"), "'morse' is no dialect; expected one of: grpc, llama-infill"),
        (
            ("--dialect", "llama-infill"),
            "--dialect llama-infill needs --server: only a grpc server can be started here",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(shell: Shell, rows: Path, options: tuple[str, ...], message: str) -> None:
    done = shell("evaluate", rows, *options)
    assert done.code == 2
    assert done.err.startswith(f"cloudcomplete evaluate: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "{rows}/out"), "cannot write the results to {rows}/out: Not a directory; "),
        (("--plots", "{rows}"), "cannot write files to {rows}: File exists; "),
        (("--server", "nowhere"), "the server address is 'nowhere'; expected HOST:PORT"),
    ],
)
def test_a_mistake_is_known_before_anything_is_asked(
    shell: Shell, rows: Path, options: tuple[str, ...], message: str
) -> None:
    done = shell("evaluate", rows, *(option.format(rows=rows) for option in options))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"cloudcomplete: {message.format(rows=rows)}")
    assert done.err.count("\n") == 1


def test_rows_that_are_none_are_refused(shell: Shell, tmp_path: Path) -> None:
    done = shell("evaluate", tmp_path / "missing.jsonl")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"cloudcomplete: cannot read the rows in {tmp_path / 'missing.jsonl'}: No such file")
