"""Results: what is written, what is shown, how two are compared."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.errors import ReportError
from loadtest.report import (
    Result,
    assemble,
    check_writable,
    compare,
    describe,
    error_notes,
    format_number,
    make_directory,
    read_result,
    write_json,
    write_plots,
)


def a_result(**changes: Any) -> Result:
    fields: dict[str, Any] = {"headline": {"tokens_per_s": 10}, "command": "cloudcomplete bench x", **changes}
    return Result(**fields)


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = assemble(
        {"exact_match": 0.25, "first_text_p50_ms": None, "rows": 4},
        [{"line": 1, "answer": "\ud83d\ude42".encode("utf-16", "surrogatepass").decode("utf-16")}],
        command="cloudcomplete evaluate rows.jsonl",
        notes=["4 rows of 5"],
        is_partial=True,
        devices="1 x cpu",
    )
    path = tmp_path / "out.json"
    write_json(path, result)
    assert read_result(path) == result
    written = json.loads(path.read_text())
    assert list(written) == [
        "headline", "rows", "partial", "notes", "command", "measured_at", "machine", "versions",
    ]  # fmt: skip
    assert written["headline"] == {"exact_match": 0.25, "first_text_p50_ms": None, "rows": 4}
    assert written["machine"]["devices"] == "1 x cpu"
    assert {"processor", "cores", "memory_bytes"} <= written["machine"].keys()
    assert "python" in written["versions"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "not measured"), (1033, "1,033"), (12345.6, "12,346"), (0.41234, "0.4123"), (10.0, "10"), (0, "0")],
)
def test_figures_are_shown_as_people_read_them(value: float | None, shown: str) -> None:
    assert format_number(value) == shown


def test_the_table_shows_every_figure_and_note_and_that_it_is_partial() -> None:
    result = a_result(headline={"exact_match": 0.5, "p50_ms": None}, notes=["1 row was skipped"], partial=True)
    assert describe(result).splitlines() == [
        "PARTIAL: the run ended early; these are the figures of what was done",
        "exact_match           0.5",
        "p50_ms       not measured",
        "",
        "1 row was skipped",
    ]


def test_a_comparison_shows_both_sides_and_the_ratio() -> None:
    left = a_result(headline={"tokens_per_s": 10, "old_ms": 1, "none_ms": None, "zero": 0})
    right = a_result(headline={"tokens_per_s": 15, "new_ms": 2, "none_ms": 3, "zero": 1})
    assert [line.split() for line in compare(left, right).splitlines()] == [
        ["A", "B", "B/A"],
        ["tokens_per_s", "10", "15", "1.500"],
        ["old_ms", "1", "absent", "-"],
        ["none_ms", "not", "measured", "3", "-"],
        ["zero", "0", "1", "-"],
        ["new_ms", "absent", "2", "-"],
    ]


def test_a_comparison_says_what_else_is_different() -> None:
    left = a_result(machine={"cores": 2, "devices": "1 x cpu"}, versions={"jax": "1"})
    right = a_result(machine={"cores": 8}, versions={"jax": "2"}, command="cloudcomplete bench y", partial=True)
    assert compare(left, right).splitlines()[2:] == [
        "",
        "B is partial: its run ended early",
        "A: cloudcomplete bench x",
        "B: cloudcomplete bench y",
        "machine: cores is 2 in A, 8 in B",
        "machine: devices is 1 x cpu in A, unknown in B",
        "version: jax is 1 in A, 2 in B",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "{path} holds no results: Object missing required field `headline`; expected a file that bench, "),
        (b'{"headline": {"a": [1]}}', "{path} holds no results: Expected `int | float | str | null`, got `array`"),
        (b'{"headline": {"a": true}}', "{path} holds no results: Expected `int | float | str | null`, got `bool`"),
        (b'[{"headline": {}}]', "{path} holds no results: Expected `object`, got `array`"),
        (b"not json", "{path} is not JSON: "),
        (b"", "{path} is not JSON: "),
        (b'{"headline": {}, "rows": [{"a": ' + b"[" * 100_000, "{path} is not JSON: "),
    ],
)
def test_a_file_that_holds_no_results_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ReportError) as raised:
        read_result(path)
    assert str(raised.value).startswith(message.format(path=path))


def test_a_missing_file_of_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"cannot read the results in .*: No such file or directory; expected a JSON"):
        read_result(tmp_path / "a.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    write_json(path, {"old": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ReportError) as raised:
        write_json(path, {"new": 1})
    assert str(raised.value) == (
        f"cannot write the results to {path}: No space left on device; expected a writable place"
    )
    assert os.listdir(tmp_path) == ["out.json"]
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_link_and_a_pipe_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(target)
    write_json(link, 1)
    assert (link.is_symlink(), target.read_text()) == (True, "1\n")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_writable(pipe)
    write_json(pipe, 2)
    assert os.read(reader, 10) == b"2\n"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_place_that_cannot_be_written_is_known_before_the_run(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.json")
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    for path, problem in (
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "out.json", "Not a directory"),
        (tmp_path / "missing" / "out.json", "No such file or directory"),
    ):
        with pytest.raises(ReportError) as before:
            check_writable(path)
        with pytest.raises(ReportError) as then:
            write_json(path, 1)
        assert str(before.value) == str(then.value)
        assert f": {problem};" in str(then.value)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    make_directory(tmp_path / "a" / "b")
    with pytest.raises(ReportError, match=r"cannot write files to .*: File exists; expected a writable place"):
        make_directory(tmp_path / "file")


def test_errors_are_told_by_how_often_they_came_and_the_rare_ones_counted() -> None:
    errors = [("lost", "gone")] * 3 + [("busy", "gone")] + [("busy", f"full {i}") for i in range(5)]
    notes = error_notes(errors)
    assert notes[:2] == ["error, lost: 3 x gone", "error, busy: 1 x gone"]
    assert notes[5:] == ["errors of 2 more kinds"]
    assert error_notes([]) == []


def test_numbers_of_numpy_are_written_as_any_others(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", {"share": np.float64(0.5), "rows": [np.int64(3)]})
    assert json.loads((tmp_path / "out.json").read_text()) == {"share": 0.5, "rows": [3]}


def test_plots_are_written_into_their_directory(tmp_path: Path) -> None:
    (path,) = write_plots(tmp_path / "plots", {"latency": b"<svg/>"})
    assert (path, path.read_bytes()) == (tmp_path / "plots" / "latency.svg", b"<svg/>")
    with pytest.raises(ReportError, match=r"cannot write the plot to .*x/y.svg: No such file or directory"):
        write_plots(tmp_path, {"x/y": b""})
