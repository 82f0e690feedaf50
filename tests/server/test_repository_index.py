"""The chunks most like a query, against the obvious way to find them."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from server.repository_index import CHUNK_LINES, STEP_LINES, RepositoryIndex, words_in

NAMES = ["load_user", "saveUser", "HTTPServer", "cache", "Invoice", "total_price", "rate2024", "run"]
lines = st.lists(st.sampled_from(NAMES), max_size=4).map(" ".join)
texts = st.lists(lines, max_size=40).map("\n".join)


def numbered(name: str, count: int) -> str:
    return "".join(f"{name}_{number} = {number}\n" for number in range(count))


def test_names_and_their_parts_are_words() -> None:
    assert words_in("x = loadHTTPUser(user_id2, 10)") == {"loadhttpuser", "load", "http", "user", "user_id2", "id"}


def test_the_chunk_about_the_same_thing_comes_first() -> None:
    index = RepositoryIndex(
        [
            ("price.py", "def total_price(invoice):\n    return sum(invoice.lines)\n"),
            ("io.py", "import sys\nexit_code = 1\n"),
        ]
    )
    found = index.search("price = total_price(current_invoice)", max_chars=1000)
    assert [(chunk.path, chunk.first_line) for chunk in found] == [("price.py", 0)]
    assert found[0].text.startswith("def total_price")


def test_chunks_are_whole_lines_and_do_not_overlap() -> None:
    text = numbered("alpha", 100)
    found = RepositoryIndex([("a.py", text)]).search(text, max_chars=10_000)
    spans = sorted((chunk.first_line, chunk.first_line + chunk.text.count("\n")) for chunk in found)
    assert len(found) >= 100 // CHUNK_LINES - 1
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert all(chunk.text in text and chunk.first_line % STEP_LINES == 0 for chunk in found)


def test_the_budget_holds_and_excluded_paths_and_copies_are_left_out() -> None:
    text = numbered("alpha", 16)
    index = RepositoryIndex([("own.py", text), ("a.py", text), ("copy.py", text), ("long.py", text + "x" * 900 + "\n")])
    found = index.search("alpha_1", max_chars=len(text) + 100, excluded={"own.py"})
    assert [chunk.path for chunk in found] == ["a.py"]
    assert index.search("alpha_1", max_chars=20) == []


def test_nothing_is_found_in_nothing() -> None:
    assert RepositoryIndex([]).search("alpha", max_chars=100) == []
    assert RepositoryIndex([("a.py", "")]).search("alpha", max_chars=100) == []
    assert RepositoryIndex([("a.py", "alpha\n")]).search("", max_chars=100) == []


@given(files=st.lists(texts, max_size=6), query=texts)
def test_scores_are_the_cosines_of_weighed_words(files: list[str], query: str) -> None:
    index = RepositoryIndex([(f"{number}.py", text) for number, text in enumerate(files)])
    chunks = []
    for number, text in enumerate(files):
        all_lines = text.splitlines(keepends=True)
        starts = range(0, max(1, math.ceil(len(all_lines) / STEP_LINES) - 1) * STEP_LINES, STEP_LINES)
        pieces = [(start, "".join(all_lines[start : start + CHUNK_LINES])) for start in starts]
        chunks += [(f"{number}.py", start, words_in(piece)) for start, piece in pieces if words_in(piece)]
    counts = {word: sum(word in words for *_, words in chunks) for *_, own in chunks for word in own}
    weight = {
        word: 0.0 if len(chunks) >= 50 and count > 0.2 * len(chunks) else math.log((1 + len(chunks)) / count)
        for word, count in counts.items()
    }
    asked = {word for word in words_in(query) if word in weight}
    norm = math.sqrt(sum(weight[word] ** 2 for word in asked))
    expected = {}
    for path, start, words in chunks:
        length = math.sqrt(sum(weight[word] ** 2 for word in words))
        shared = sum(weight[word] ** 2 for word in words & asked)
        expected[path, start] = shared / (norm * length) if norm * length else 0.0
    for found in index.search(query, max_chars=100_000):
        assert math.isclose(found.score, expected[found.path, found.first_line], rel_tol=1e-4)
    best = max(expected.values(), default=0.0)
    first = index.search(query, max_chars=100_000)[:1]
    assert (not first and best < 1e-5) or math.isclose(first[0].score, best, rel_tol=1e-4)
