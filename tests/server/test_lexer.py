"""The lexer tells strings, comments and brackets apart, however the text is split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.lexer import Lexer, count_unmatched, rules_of

TEXTS = st.text(alphabet="ab \n\\\"'`#/*-()[]{}=r", max_size=60)


def state(path: str, text: str) -> tuple[str, str]:
    lexer = Lexer(rules_of(path, ""))
    lexer.scan(text)
    return lexer.quote, "".join(lexer.stack)


@pytest.mark.parametrize(
    ("path", "text", "quote", "stack"),
    [
        ("a.py", "f([{", "", "([{"),
        ("a.py", "f('(')", "", ""),
        ("a.py", "x = '(\ny = (", "", "("),
        ("a.py", "# (\n", "", ""),
        ("a.py", "# don't (", "#", ""),
        ("a.py", '"""(\n"', '"""', ""),
        ("a.py", '"""(\n"""(', "", "("),
        ("a.py", "x = '', (", "", "("),
        ("a.py", r"x = '\'(", "'", ""),
        ("a.py", "x = a // (b", "", "("),
        ("a.js", "a = b / (c", "", "("),
        ("a.js", "a = /[(]/, (", "", "("),
        ("a.js", "// it's (\n(", "", "("),
        ("a.ts", "`(\n${x", "`", ""),
        ("a.c", "/* ( */ {", "", "{"),
        ("a.c", "/*/ (", "/*", ""),
        ("a.c", "'(' + \"{\"", "", ""),
        ("a.rs", "fn f<'a>(x: &'a str", "", "("),
        ("a.rs", "let c = '('; (", "", "("),
        ("a.go", "`\\`(", "", "("),
        ("a.lua", "-- (\n(", "", "("),
        ("a.md", "don't (", "", ""),
        ("unknown", "don't (", "", "("),
        ("a.py", "f(]", "", "("),
        ("a.py", "f([)", "", ""),
    ],
)
def test_strings_and_comments_hide_brackets(path: str, text: str, quote: str, stack: str) -> None:
    assert state(path, text) == (quote, stack)


@given(TEXTS, st.sampled_from(["a.py", "a.ts", "a.rs", "a.c", "a.go", "a.sql", "a.md"]), st.integers(0, 60))
def test_the_state_does_not_depend_on_the_split(text: str, path: str, at: int) -> None:
    whole, parts, single = (Lexer(rules_of(path, "")) for _ in range(3))
    whole.scan(text)
    parts.scan(text[:at])
    parts.scan(text[at:])
    for char in text:
        single.step(char)
    assert (whole.quote, whole.stack) == (parts.quote, parts.stack) == (single.quote, single.stack)


def test_a_language_is_known_by_its_path_or_else_by_its_name() -> None:
    assert rules_of("src/a.py", "go") == rules_of("", "Python")
    assert rules_of("", "nothing known") == rules_of("README", "")


@pytest.mark.parametrize(
    ("text", "most", "count"),
    [("a)]}", 9, 3), ("(a)]", 9, 1), ("a)]}", 2, 2), ("')'", 9, 0), ("a)(b))", 9, 2), (")", 0, 0)],
)
def test_brackets_that_close_what_was_opened_before_are_counted(text: str, most: int, count: int) -> None:
    assert count_unmatched(text, Lexer(rules_of("a.py", "")), most=most) == count
