"""`cloudcomplete bench`: listing, running and comparing."""

import json
from pathlib import Path

import pytest

from loadtest.benchmarks import registry
from loadtest.report import Result, write_json
from tests.cloudcomplete.shell import Shell


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> str:
    benchmark = registry.Benchmark(
        name="quick", summary="s", measure=lambda on_progress: ({"things_per_s": 12.5}, [{"a": 1}])
    )
    monkeypatch.setitem(registry.BENCHMARKS, "quick", benchmark)
    return benchmark.name


def test_without_a_name_the_benchmarks_are_listed(shell: Shell) -> None:
    done = shell("bench")
    assert done.code == 0
    assert {"decode", "prefill"} <= {line.split()[0] for line in done.out.splitlines()}


def test_a_benchmark_is_run_and_its_result_written(shell: Shell, tmp_path: Path, quick: str) -> None:
    out = tmp_path / "quick.json"
    done = shell("bench", quick, "--json", out)
    assert (done.code, done.out) == (0, "things_per_s  12.5\n")
    written = json.loads(out.read_text())
    assert (written["headline"], written["rows"]) == ({"things_per_s": 12.5}, [{"a": 1}])
    assert (written["command"], written["partial"]) == ("cloudcomplete bench quick", False)
    assert written["machine"]["devices"].endswith("cpu")


def test_a_place_that_cannot_be_written_is_refused_before_the_run(shell: Shell, tmp_path: Path, quick: str) -> None:
    done = shell("bench", quick, "--json", tmp_path / "missing" / "out.json")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("out.json: No such file or directory; expected a writable place\n")


def test_results_of_any_kind_are_compared(shell: Shell, tmp_path: Path) -> None:
    left, right = tmp_path / "a.json", tmp_path / "b.json"
    write_json(left, Result(headline={"exact_match": 0.2}, command="cloudcomplete evaluate rows.jsonl"))
    right.write_text('{"headline": {"exact_match": 0.3, "rows": 5}}')  # as an older version wrote it
    done = shell("bench", "compare", left, right)
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["A", "B", "B/A"],
        ["exact_match", "0.2", "0.3", "1.500"],
        ["rows", "absent", "5", "-"],
        [],
        ["A:", "cloudcomplete", "evaluate", "rows.jsonl"],
        ["B:", "command", "unknown"],
    ]


def test_what_is_no_result_is_not_compared(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    done = shell("bench", "compare", path, path)
    assert done.code == 1
    assert done.err == (
        f"cloudcomplete: {path} holds no results: Object missing required field `headline`; "
        "expected a file that bench, replay or evaluate wrote with --json\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "'nothing' is no benchmark; expected one of: "),
        (("a", "b"), "expected one benchmark, got 2: a b; see `cloudcomplete bench --help`"),
        (("compare", "a"), "compare takes two files of results, got 1; see `"),
        (("compare", "a", "b", "--json", "c"), "compare writes no file; expected --json only with a benchmark; see `"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(shell: Shell, words: tuple[str, ...], message: str) -> None:
    done = shell("bench", *words)
    assert done.code == 2
    assert done.err.startswith(f"cloudcomplete bench: {message}")
    assert done.err.count("\n") == 1
