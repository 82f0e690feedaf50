"""Files and places in them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcomplete.errors import SourceFileError
from cloudcomplete.source_file import SourceFile


def file(text: str) -> SourceFile:
    return SourceFile(path="a.py", text=text)


def refused(text: str, line: int, column: int) -> str:
    with pytest.raises(SourceFileError) as raised:
        file(text).split(line, column)
    return str(raised.value)


@given(st.text(alphabet="ab\n\r🙂"), st.data())
def test_each_place_splits_the_text_without_loss(text: str, data: st.DataObject) -> None:
    lines = text.split("\n")
    line = data.draw(st.integers(1, len(lines)))
    column = data.draw(st.integers(0, len(lines[line - 1].removesuffix("\r"))))
    before, after = file(text).split(line, column)
    assert before + after == text
    assert before.count("\n") == line - 1
    assert len(before) - before.rfind("\n") - 1 == column


def test_an_empty_file_has_one_place() -> None:
    assert file("").split(1, 0) == ("", "")
    assert refused("", 1, 1).startswith("column 1 is out of range")


def test_the_line_after_a_last_line_break_is_a_place() -> None:
    assert file("a\n").split(2, 0) == ("a\n", "")


@pytest.mark.parametrize("line", [0, -1, 4])
def test_a_line_out_of_range_is_named_with_the_range(line: int) -> None:
    assert refused("a\nb\n", line, 0) == f"line {line} is out of range: a.py has lines 1 to 3; lines count from 1"


@pytest.mark.parametrize("column", [-1, 3])
def test_a_column_out_of_range_is_named_with_the_range(column: int) -> None:
    assert refused("ab\r\nc", 1, column) == (
        f"column {column} is out of range: line 1 of a.py has columns 0 to 2; columns count from 0"
    )


def test_a_file_below_the_working_directory_is_told_by_its_path_there_and_another_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "src").mkdir(parents=True)
    for name in ("project/src/a.py", "b.py"):
        (tmp_path / name).write_bytes(b"x\r\n")
    monkeypatch.chdir(tmp_path / "project")
    assert SourceFile.read(Path("src/a.py")) == SourceFile(path="src/a.py", text="x\r\n")
    assert SourceFile.read(tmp_path / "project" / "src" / "a.py").path == "src/a.py"
    assert SourceFile.read(Path("../b.py")).path == "b.py"


def test_files_that_are_missing_or_none_are_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "missing", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SourceFileError) as raised:
            SourceFile.read(path)
        assert str(raised.value) == f"cannot read {path}: {reason}; expected a text file"


def test_a_file_that_is_not_utf8_is_named_with_the_byte_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin1.py"
    path.write_bytes(b"a\nb = '\xe9'\n")
    with pytest.raises(SourceFileError) as raised:
        SourceFile.read(path)
    assert str(raised.value) == f"{path} is not UTF-8: byte 0xe9 in line 2; convert the file to UTF-8 first"
