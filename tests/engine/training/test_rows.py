import gzip
import re

import msgspec
import pytest

from engine.training.errors import CorpusError
from engine.training.rows import HeldOutRow, make_rows, write_rows
from loadtest.rows import read_rows


def whole_of(documents, row: HeldOutRow) -> str:
    (text,) = (document.text for document in documents if document.path == row.path)
    return text


def test_rows_are_holes_in_held_out_text_up_to_the_end_of_a_line(documents) -> None:
    rows = make_rows(documents, cursor="line", per_language=40, seed=1)
    assert len(rows) == 40
    for row in rows:
        assert row.prompt + row.canonical_solution + row.suffix == whole_of(documents, row)
        assert row.path.startswith("held/")
        assert "\n" not in row.canonical_solution
        assert row.suffix[:1] in ("", "\n")
    assert len({len(row.prompt) for row in rows}) == 40, "no hole twice"
    assert rows == make_rows(documents, cursor="line", per_language=40, seed=1)
    assert rows != make_rows(documents, cursor="line", per_language=40, seed=2)


def test_cursors_within_an_identifier_have_its_characters_on_both_sides(documents) -> None:
    for row in make_rows(documents, cursor="identifier", per_language=40, seed=1):
        assert re.search(r"\w$", row.prompt)
        assert re.match(r"\w", row.canonical_solution)


def test_every_second_row_brings_other_files_of_its_project(documents) -> None:
    held_out = [msgspec.structs.replace(document, split="held-out", project="one") for document in documents]
    rows = make_rows(held_out, cursor="line", per_language=10, seed=1)
    assert [len(row.context) for row in rows] == [0, 3] * 5
    texts = {document.path: document.text for document in documents}
    for row in rows:
        for chunk in row.context:
            assert chunk.path != row.path
            assert chunk.text.rstrip("\n") in texts[chunk.path]


def test_long_text_is_cut_at_a_line_and_keeps_what_is_near(documents) -> None:
    long = msgspec.structs.replace(documents[-1], text=documents[-1].text * 40)
    for row in make_rows([long], cursor="line", per_language=20, seed=1):
        assert len(row.prompt) <= 12_000
        assert len(row.suffix) <= 6_000
        assert row.prompt + row.canonical_solution + row.suffix in long.text
        start = long.text.find(row.prompt + row.canonical_solution + row.suffix)
        assert start == 0 or long.text[start - 1] == "\n"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_the_file_is_one_that_evaluate_reads(documents, tmp_path, name) -> None:
    rows = make_rows(documents, cursor="line", per_language=5, seed=1)
    assert write_rows(rows, tmp_path / name) == {"python": 5}
    read = read_rows(tmp_path / name)
    assert [row.canonical_solution for row in read.usable] == [row.canonical_solution for row in rows]
    assert [row.task_id for row in read.usable] == [row.task_id for row in rows]
    content = (tmp_path / name).read_bytes()
    assert (content[:2] == b"\x1f\x8b") == name.endswith(".gz")
    write_rows(rows, tmp_path / f"again-{name}")
    assert (tmp_path / f"again-{name}").read_bytes() == content, "no time of day in it"
    if name.endswith(".gz"):
        assert gzip.decompress(content).count(b"\n") == 5


def test_a_corpus_that_holds_nothing_out_is_refused(documents) -> None:
    with pytest.raises(CorpusError, match="no held-out documents"):
        make_rows(documents[:2], cursor="line", per_language=5, seed=1)
