"""Files of rows: what is read, what is left out and why, and which rows a limit takes."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import RowsError
from loadtest.rows import Row, Rows, group_by_reason, read_rows, sample
from loadtest.scores import is_single_line

INFILLING = Path(__file__).parents[3] / "shared/data/human-eval-infilling/HumanEval-SingleLineInfilling.jsonl.gz"


def a_line(**fields: object) -> bytes:
    return json.dumps({"prompt": "p", "suffix": "s", "canonical_solution": "x", **fields}).encode()


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


def test_a_row_keeps_its_fields_and_others_are_ignored(tmp_path: Path) -> None:
    context = [{"path": "b.py", "text": "y", "score": 3}]
    line = a_line(language="python", path="a.py", context=context, task_id=7, test="def check(): ...", line="other")
    (row,) = read_rows(write(tmp_path / "rows", b"", line, b"  ")).usable
    assert (row.prompt, row.suffix, row.canonical_solution, row.language, row.path) == ("p", "s", "x", "python", "a.py")
    assert (row.task_id, row.line) == (7, 2)
    assert [(part.path, part.text) for part in row.context or ()] == [("b.py", "y")]


def test_optional_fields_may_be_null_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "rows", b"\xef\xbb\xbf" + a_line(language=None, path=None, context=None)))
    assert (len(rows.usable), rows.skipped) == (1, ())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "p", "suffix": "s"}', "Object missing required field `canonical_solution`"),
        (a_line(canonical_solution=None), "Expected `str`, got `null` - at `$.canonical_solution`"),
        (a_line(canonical_solution=" \n"), "canonical_solution is blank"),
        (a_line(prompt=3), "Expected `str`, got `int` - at `$.prompt`"),
        (a_line(context=[{"path": "b.py"}]), "Object missing required field `text` - at `$.context[0]`"),
        (b"[1, 2]", "Expected `object`, got `array`"),
        (b'{"prompt": "p", ', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_kept_with_its_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    rows = read_rows(write(tmp_path / "rows", a_line(), line, a_line(), line))
    assert [row.line for row in rows.usable] == [1, 3]
    assert group_by_reason(rows.skipped) == {reason: [2, 4]}


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(a_line()) + gzip.compress(b"\n" + a_line()))
    assert [row.line for row in read_rows(path).usable] == [1, 2]


@pytest.mark.parametrize(("num_kept_bytes", "end"), [(-30, b""), (-8, b"\0" * 8), (None, b"?")])
def test_damaged_gzip_keeps_the_rows_before_the_damage(tmp_path: Path, num_kept_bytes: int | None, end: bytes) -> None:
    path = tmp_path / "rows.gz"
    lines = [a_line(prompt=f"{number} {number * 7919 % 1000}") for number in range(1000)]
    path.write_bytes(gzip.compress(b"\n".join(lines))[:num_kept_bytes] + end)
    rows = read_rows(path)
    assert 0 < len(rows.usable) <= 1000
    assert list(group_by_reason(rows.skipped)) == [
        "the gzip data is damaged or cut short; rows may be missing or wrong"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path} has no row that can be evaluated (it is empty); expected JSON objects with prompt, suffix and "),
        (b"{}\n{}\n", "{path} has no row that can be evaluated (line 1: Object missing required field `prompt`); "),
        (b"\x1f\x8b", "{path} has no row that can be evaluated (line 1: the gzip data is damaged"),
    ],
)
def test_a_file_without_a_usable_row_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "rows", content)
    with pytest.raises(RowsError) as raised:
        read_rows(path)
    assert str(raised.value).startswith(message.format(path=path))


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RowsError) as raised:
        read_rows(tmp_path)
    assert str(raised.value) == f"cannot read the rows in {tmp_path}: Is a directory; expected a JSON Lines file"


def some_rows(count: int) -> tuple[Row, ...]:
    return tuple(Row(prompt="", suffix="", canonical_solution="x", line=line) for line in range(1, count + 1))


@given(st.integers(0, 60), st.integers(0, 70), st.integers(0, 70))
def test_a_smaller_sample_is_a_part_of_a_larger_one_in_the_files_order(count: int, few: int, many: int) -> None:
    rows = some_rows(count)
    small, large = sample(rows, min(few, many)), sample(rows, max(few, many))
    assert len(small) == min(few, many, count)
    assert {row.line for row in small} <= {row.line for row in large}
    assert sorted(large, key=lambda row: row.line) == list(large)
    assert sample(rows, None) == rows


def test_a_sample_is_spread_over_the_file_and_not_in_step_with_it() -> None:
    lines = [row.line for row in sample(some_rows(1000), 100)]
    assert lines[:3] == [line for line in lines if line <= lines[2]]
    for part in range(4):
        assert 15 <= sum(part * 250 < line <= (part + 1) * 250 for line in lines) <= 35
        assert 15 <= sum(line % 4 == part for line in lines) <= 35


@pytest.mark.shared_data
@pytest.mark.skipif(not INFILLING.exists(), reason=f"the infilling rows are not at {INFILLING}")
def test_the_infilling_rows_are_all_usable_and_single_line() -> None:
    rows: Rows = read_rows(INFILLING)
    assert (len(rows.usable), rows.skipped) == (1033, ())
    assert all(is_single_line(row.canonical_solution) for row in rows.usable)
