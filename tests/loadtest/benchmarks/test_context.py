"""`bench context`: contexts of a row's own project only, and a gain with an honest interval."""

import math

import pytest

from engine.training.corpus import Document
from engine.training.rows import make_rows
from loadtest.benchmarks.context import choose_contexts, gain_interval, relative_gain


def document(project: str, path: str, text: str) -> Document:
    return Document(project=project, path=path, language="python", split="held-out", text=text)


def test_contexts_come_from_other_files_of_the_row_s_project() -> None:
    text = "".join(f"def total_price_{number}(invoice):\n    return invoice.rate * {number}\n" for number in range(12))
    documents = [
        document(project, path, text.replace("price", word))
        for project, word in (("pypi:one", "price"), ("pypi:two", "weight"))
        for path in ("a.py", "b.py")
    ]
    rows = make_rows(documents, cursor="line", per_language=8, seed=1)
    contexts = choose_contexts(documents, rows, max_tokens=2000)
    assert all(contexts)
    for row, context in zip(rows, contexts, strict=True):
        word = "weight" if "two" in row.task_id else "price"
        for chunk in context:
            assert chunk.path != row.path
            assert word in chunk.text


def test_the_relative_gain_counts_rows_won_and_lost() -> None:
    pairs = [(True, True)] * 5 + [(True, False)] + [(False, True)] * 3 + [(False, False)] * 91
    assert relative_gain(pairs) == pytest.approx(2 / 6)
    low, high = gain_interval(pairs)
    assert low < 2 / 6 < high
    assert gain_interval(pairs) == (low, high)


def test_where_nothing_is_right_there_is_no_gain_to_tell() -> None:
    assert math.isnan(relative_gain([(False, True)]))
    assert math.isnan(gain_interval([(False, True)])[0])
