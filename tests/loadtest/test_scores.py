"""Scores against an obvious twin, and what counts as an answer."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.scores import edit_similarity, first_line, has_first_line, is_exact_match, is_single_line

texts = st.text(alphabet="ab \n(é", max_size=12)


def plain_similarity(answer: str, solution: str) -> float:
    """Count insertions and deletions over the whole table, as the definition says."""
    a, b = answer.strip(), solution.strip()
    if not a and not b:
        return 1.0
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(above[j - 1] if char == other else 1 + min(above[j], row[j - 1]))
    return 1 - row[-1] / (len(a) + len(b))


@given(texts, texts)
def test_edit_similarity_is_the_definitions(answer: str, solution: str) -> None:
    assert math.isclose(edit_similarity(answer, solution), plain_similarity(answer, solution), abs_tol=1e-9)


@given(texts, texts)
def test_an_exact_match_and_nothing_else_has_similarity_1(answer: str, solution: str) -> None:
    assert is_exact_match(answer, solution) == (edit_similarity(answer, solution) == 1.0)


@given(texts, texts)
def test_similarity_is_symmetric_and_blind_to_outer_white_space(answer: str, solution: str) -> None:
    assert edit_similarity(answer, solution) == edit_similarity(f"\n {solution}\t", f" {answer}\n")


def test_similarity_is_what_the_fields_tools_report() -> None:
    assert edit_similarity("return x", "return y") == pytest.approx(14 / 16)
    assert edit_similarity("", "return y") == 0.0
    assert not is_exact_match("return  x", "return x")  # inner white space counts


@pytest.mark.parametrize(
    ("solution", "is_one"),
    [("    return x\n", True), ("return x", True), ("\n\n  x\r\n", True), ("if x:\n    y", False), ("x\r\ny", False)],
)
def test_a_line_break_around_a_solution_does_not_make_it_two_lines(solution: str, *, is_one: bool) -> None:
    assert is_single_line(solution) == is_one


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb\n", "a"), ("\n  \n  a b\nc", "\n  \n  a b"), ("a", "a"), ("", ""), (" \n ", " \n "), ("a\r\nb", "a\r")],
)
def test_the_first_line_ends_at_the_first_line_break_after_text(text: str, line: str) -> None:
    assert first_line(text) == line


@given(st.text(alphabet="ab \n", max_size=20))
def test_a_stream_may_stop_once_it_has_its_first_line(text: str) -> None:
    prefixes = [text[:end] for end in range(len(text) + 1)]
    for prefix in prefixes:
        if has_first_line(prefix):
            assert first_line(prefix) == first_line(text)
    assert all(has_first_line(longer) or not has_first_line(shorter) for shorter, longer in pairwise(prefixes))
