"""A completion ends where a programmer would end it, however the text arrives."""

import importlib
import inspect
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.types import Finish, FinishReason, FinishState, Output, Request, Usage
from loadtest.benchmarks import trim as benchmark
from server.trim import TrimmedSink, Trimmer
from server.types import TrimMode


def run(trimmer: Trimmer, parts: Iterable[str]) -> str:
    """Push until the end, checking that only the ended trimmer says so, and return what was shown."""
    shown = []
    for part in parts:
        text, is_ended = trimmer.push(part)
        assert is_ended is trimmer.is_ended
        shown.append(text)
        if is_ended:
            assert trimmer.push("more") == ("", True)
            break
    return "".join(shown) + trimmer.flush()


def trim(before: str, text: str, after: str = "", *, path: str = "a.py", mode: TrimMode = "auto") -> str:
    return run(Trimmer(before, after, path=path, mode=mode), text)


LINES = [
    ("a begun statement", "x = ", "1\ny = 2\n", "", "1"),
    ("the line break ahead of the line", "x = 1", "\ny = 2\nz = 3\n", "", "\ny = 2"),
    ("no trailing space", "x = ", "1  \n", "", "1"),
    ("code behind the cursor", "x = f(", "a, b\n", " + c)\n", "a, b"),
    ("a bracket that is there", "x = f(", "a, b)\ny", ")\n", "a, b"),
    ("a bracket that is missing", "x = f(", "a, g(b))\ny", "\n", "a, g(b))"),
    ("one of two that is missing", "x = f(g(", "a)\ny", ")\n", "a)"),
    ("a bracket that nothing opened", "x = a", ")\n", "\n", ""),
    ("a bracket of another kind", "x = [a", ")\n", "\n", ""),
    ("a quote that is there", 'x = "', 'abc"\ny', '"\n', "abc"),
    ("a quote that is missing", 'x = "', 'abc" + "d"\ny', "\n", 'abc" + "d"'),
    ("a bracket in a string", 'x = f("', ')"\n', '")\n', ")"),
    ("the rest of the line again", "x = ", "a + b\n", " + b\n", "a"),
    ("the rest of the line, but within a word", "x = ", "data\n", "a\n", "data"),
    ("a sign that is there", "x = {'a': ", "1,\n", ",\n", "1"),
    ("space before a bracket that is there", "f(a,", " b )\n", ")\n", " b "),
    ("the line below", "", "    return x\n", "\n    return x\n", ""),
    ("the head of a function", "def f(", "a, b):\n    return a\n", "\n", "a, b):"),
]


@pytest.mark.parametrize(
    ("before", "text", "after", "shown"), [row[1:] for row in LINES], ids=[row[0] for row in LINES]
)
def test_a_line_ends(before: str, text: str, after: str, shown: str) -> None:
    assert trim(before, text, after) == shown


PYTHON = [
    ("a body at its dedent", "def f():\n", "    a = 1\n\n    return a\n\ndef g():\n", "", "    a = 1\n\n    return a"),
    ("a body from its colon on", "if x:", "\n    a\nb\n", "", "\n    a"),
    ("a body on the line of its colon", "if x:", " a\nb\n", "", " a"),
    ("a body at else", "if x:\n    ", "a\nelse:\n    b\n", "", "a"),
    ("a line where a body was to be", "if x:\n", "b\nc\n", "", "b"),
    ("a head of several lines", "if (a and\n        b):\n    ", "c\nd\n", "", "c"),
    (
        "deeper blocks belong to it",
        "def f():\n    ",
        "for x in y:\n        z\n    w\nq",
        "",
        "for x in y:\n        z\n    w",
    ),
    ("strings over several lines", 'def f():\n    """', "Say.\n", "", "Say."),
    (
        "such a string in the text",
        "def f():\n    ",
        'x = """\na\n"""\n    return x\nb\n',
        "",
        'x = """\na\n"""\n    return x',
    ),
    (
        "lines in brackets at the margin",
        "def f():\n    ",
        "x = [\n1,\n]\n    return x\nb\n",
        "",
        "x = [\n1,\n]\n    return x",
    ),
    ("a continued line", "def f():\n    ", "x = 1 + \\\n2\n    return x\nb\n", "", "x = 1 + \\\n2\n    return x"),
    (
        "one method of a class",
        "class A:\n    x = 1\n\n    ",
        "def f(self):\n        a\n\n    def g",
        "",
        "def f(self):\n        a",
    ),
    (
        "decorators with it",
        "class A:\n    x = 1\n\n    ",
        "@a\n    @b\n    def f(self):\n        a\n\n    @a\n",
        "",
        "@a\n    @b\n    def f(self):\n        a",
    ),
    ("one definition at the top", "import a\n\n\n", "def f():\n    a\n\n\ndef g", "", "def f():\n    a"),
    ("a condition with its else", "", "if x:\n    a\nelse:\n    b\nc\n", "", "if x:\n    a\nelse:\n    b"),
    ("a paragraph at the top", "", "a = 1\nb = 2\n\nc = 3\n", "", "a = 1\nb = 2"),
    ("arguments on their own lines", "x = f(\n    a,\n    ", "b,\n    c,\n)\ny", "", "b,\n    c,\n)"),
    ("the same where they are closed", "x = f(\n    a,\n    ", "b,\n    c,\n)\ny", "\n)\n", "b,\n    c,"),
    ("before the line below", "def f():\n    ", "a = 1\n    return a\n", "\n    return a\n", "a = 1"),
    (
        "a decorator is no such line",
        "class A:\n    ",
        "@a\n    def f(self): pass\n",
        "\n    @a\n    def g(self): pass\n",
        "@a\n    def f(self): pass",
    ),
    ("the third of equal lines", "def f():\n    ", "a()\n    a()\n    a()\n    b()\n", "", "a()\n    a()"),
    (
        "lines in turn",
        "def f():\n    ",
        "a()\n    b()\n" + "    a()\n    b()\n" * 9,
        "",
        "a()\n    b()\n    a()\n    b()\n    a()\n    b()",
    ),
]
BRACES = [
    ("its brace", "a.c", "void f() {\n  ", "a();\n  if (b) {\n    c();\n  }\n}\n\nint g", "", "a();\n  if (b) {\n    c();\n  }\n}"),  # noqa: E501
    ("a brace that is there", "a.c", "void f() {\n  ", "a();\n}\n\nint g", "\n}\n", "a();"),
    ("a brace that is there on the line", "a.ts", "function f() {", "\n  a();\n}\n", "}\n", "\n  a();\n"),
    ("only the inner one of two", "a.c", "void f() {\n  if (x) {\n    ", "a();\n  }\n  b();", "\n}\n", "a();\n  }"),
    ("ahead of else", "a.js", "if (x) {\n  ", "a();\n} else {\n  b();\n}\n", "", "a();\n}"),
    ("signs behind the brace", "a.ts", "const f = g(() => {\n  ", "a();\n});\nb();", "", "a();\n});"),
    ("a definition at the top", "a.go", "package a\n\n", "func F() {\n\tg()\n}\n\nfunc H", "", "func F() {\n\tg()\n}"),
    ("a brace on its own line", "a.cpp", "", "int f()\n{\n  a();\n}\n\nint g", "", "int f()\n{\n  a();\n}"),
    ("a method", "a.java", "class A {\n  int x;\n\n  ", "public int f() {\n    return x;\n  }\n\n  public int g", "\n}\n", "public int f() {\n    return x;\n  }"),  # noqa: E501
    ("attributes with it", "a.rs", "use a;\n\n", "#[test]\nfn f<'a>() {\n    g('{');\n}\n\nfn h", "", "#[test]\nfn f<'a>() {\n    g('{');\n}"),  # noqa: E501
    ("braces in strings", "a.js", "function f() {\n  ", "a('}', `}\n}`, /}/);\n}\nb", "", "a('}', `}\n}`, /}/);\n}"),
    ("the preprocessor at the margin", "a.c", "int f() {\n", "#ifdef A\n  a();\n#endif\n}\nint g", "", "#ifdef A\n  a();\n#endif\n}"),  # noqa: E501
    ("a case", "a.c", "switch (x) {\n  case 1:\n    ", "a();\n    break;\n  case 2:\n", "\n}\n", "a();\n    break;"),
    ("a word that closes", "a.rb", "def f\n  ", "a\nend\n\ndef g", "", "a\nend"),
    ("a word that is there", "a.rb", "def f\n  ", "a\nend\n\ndef g", "\nend\n", "a"),
    ("a paragraph of prose", "a.md", "# A\n\n", "It (is.\n\nIt was.", "", "It (is."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "text", "after", "shown"), [row[1:] for row in PYTHON], ids=[row[0] for row in PYTHON]
)
def test_a_block_of_python_ends(before: str, text: str, after: str, shown: str) -> None:
    assert trim(before, text, after) == shown


@pytest.mark.parametrize(
    ("path", "before", "text", "after", "shown"), [row[1:] for row in BRACES], ids=[row[0] for row in BRACES]
)
def test_a_block_in_braces_ends(path: str, before: str, text: str, after: str, shown: str) -> None:
    assert trim(before, text, after, path=path) == shown


def test_a_loop_on_one_line_ends() -> None:
    shown = trim("x = [", "0, 1, " * 200)
    assert shown
    assert len(shown) <= 160


def test_who_asks_can_choose() -> None:
    text = "a\n    b\nc\n"
    assert trim("def f():\n    ", text, mode="line") == "a"
    assert trim("x = f", "(a)\ny = 1\n\nz\n", mode="block") == "(a)\ny = 1"
    assert trim("def f():\n    ", text, mode="off") == text


def test_the_text_goes_out_as_soon_as_it_is_final() -> None:
    trimmer = Trimmer("def f():\n    ", "\n    return x\n", path="a.py")
    parts = ["a ", "= 1", "\n    ", "b", "()\n  ", "  ret", "urned", "\n", "c"]
    assert [trimmer.push(part) for part in parts] == [
        ("a", False),
        (" = 1", False),
        ("", False),
        ("\n    b", False),
        ("()", False),
        ("", False),  # perhaps the line below
        ("\n    returned", False),
        ("", False),
        ("", True),
    ]


def test_a_word_that_may_go_on_is_held_where_it_decides() -> None:
    trimmer = Trimmer("", "", path="a.py")
    parts = ["if x:\n    a\n", "el", "se:", "\n", "    b\n", "c", " ="]
    assert [trimmer.push(part) for part in parts] == [
        ("if x:\n    a", False),
        ("", False),
        ("\nelse:", False),
        ("", False),
        ("\n    b", False),
        ("", False),
        ("", True),
    ]


TEXTS = st.text(alphabet="ab1 \n\n    \t\\\"'`#/*()[]{}:,;@.", max_size=120)
PATHS = st.sampled_from(["a.py", "a.ts", "a.c", "a.rb", "a.md", ""])
MODES = st.sampled_from(["auto", "line", "block", "off"])


@given(TEXTS, TEXTS, TEXTS, PATHS, MODES, st.lists(st.integers(1, 9), min_size=1))
def test_what_is_shown_is_a_prefix_and_does_not_depend_on_the_split(
    before: str, text: str, after: str, path: str, mode: TrimMode, sizes: list[int]
) -> None:
    starts = [0, *itertools.takewhile(lambda at: at < len(text), itertools.accumulate(itertools.cycle(sizes)))]
    parts = [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])]
    whole = run(Trimmer(before, after, path=path, mode=mode), [text])
    assert text.startswith(whole)
    assert run(Trimmer(before, after, path=path, mode=mode), parts) == whole
    assert run(Trimmer(before, after, path=path, mode=mode), text) == whole


@pytest.mark.parametrize("side", ["filled", "appended"])
def test_real_blocks_end_where_pythons_parser_says(side: str) -> None:
    for kind, least in (("body", 0.97), ("rest", 0.97), ("line", 0.98), ("definition", 0.85)):
        blocks = [
            block
            for name in ("textwrap", "heapq", "shlex", "queue", "csv", "bisect", "cmd")
            for block in benchmark.blocks_of_module(f"{name}.py", inspect.getsource(importlib.import_module(name)))
            if block.kind == kind
        ]
        exact = [benchmark.end_of(block, has_after=side == "filled") == block.text for block in blocks]
        assert len(exact) > 15
        assert sum(exact) / len(exact) >= least, kind


class Sunk:
    """A trimmed sink between a request for a body and a list."""

    def __init__(self, *, mode: TrimMode = "auto") -> None:
        self.outputs: list[Output] = []
        self.num_cancels = 0
        self.sink = TrimmedSink(self.outputs.append, self._cancel)
        self.sink.begin(Request(request_id="a", before="def f():\n", path="a.py"), mode)

    def _cancel(self) -> None:
        self.num_cancels += 1

    def take(self, text: str, state: FinishState | None = None, reason: FinishReason = "stop") -> None:
        finish = state and Finish(state=state, reason=reason, usage=Usage(num_generated_tokens=7))
        self.sink.take(Output(request_id="a", text=text, logit_gap=0.5, finish=finish))


def test_a_text_that_has_ended_cancels_its_request_once_and_counts_as_finished() -> None:
    sunk = Sunk()
    for text in ("    a", "\n", "b", "()", "\nc"):
        sunk.take(text)
    sunk.take("", "cancelled", "cancelled")
    assert [output.text for output in sunk.outputs] == ["    a", ""]
    assert sunk.num_cancels == 1
    assert sunk.sink.is_early
    last = sunk.outputs[-1].finish
    assert last == Finish(state="finished", reason="stop", usage=Usage(num_generated_tokens=7))


def test_a_text_that_the_engine_ends_is_shown_to_its_end() -> None:
    sunk = Sunk()
    sunk.take("    a")
    sunk.take("b\n", "finished", "length")
    assert "".join(output.text for output in sunk.outputs) == "    ab"
    assert not sunk.sink.is_early
    assert sunk.outputs[-1].finish is not None
    assert sunk.outputs[-1].finish.reason == "length"


def test_an_end_in_the_engines_last_output_is_a_stop() -> None:
    sunk = Sunk()
    sunk.take("    a\nb()", "finished", "length")
    assert "".join(output.text for output in sunk.outputs) == "    a"
    assert sunk.outputs[-1].finish is not None
    assert sunk.outputs[-1].finish.reason == "stop"
    assert sunk.num_cancels == 0


def test_a_request_that_somebody_else_cancels_stays_cancelled() -> None:
    sunk = Sunk()
    sunk.take("    a")
    sunk.take("", "cancelled", "cancelled")
    assert sunk.outputs[-1].finish is not None
    assert sunk.outputs[-1].finish.state == "cancelled"


def test_a_line_ahead_of_one_that_is_the_same_is_not_taken_for_that_one() -> None:
    assert trim("for n in s:\n", "    return n", "    return n\n    break\n").strip() == "return n"
    assert trim("x = f(a", ", b)", ", b)\n") == ""
