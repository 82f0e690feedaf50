"""`bench similarity` and `bench embedding`, small: that the figures are of what was measured."""

import numpy as np
import pytest

from cache.neighbours import FEWEST_FOR_SCANN, has_scann
from loadtest.benchmarks import embedding, similarity
from loadtest.benchmarks.code_places import Place


@pytest.mark.skipif(not has_scann(), reason="the scann package is not installed")
def test_similarity_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "NUM_ENTRIES", FEWEST_FOR_SCANN)
    monkeypatch.setattr(similarity, "NUM_QUERIES", 50)
    monkeypatch.setattr(similarity, "_NUM_CHANGES", 20)
    headline, rows = similarity.measure(lambda line: None)
    assert headline["entries"] == FEWEST_FOR_SCANN
    assert 0.8 <= headline["recall"] <= 1
    assert rows[0]["what"] == "exact"
    assert rows[0]["recall"] == rows[0]["recall_of_all"] == 1
    assert 0 < headline["draft_accepted_chars"] < 256


def test_without_scann_the_exact_search_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "NUM_ENTRIES", 100)
    monkeypatch.setattr(similarity, "NUM_QUERIES", 20)
    monkeypatch.setattr(similarity, "has_scann", lambda: False)
    lines = list[str]()
    headline, rows = similarity.measure(lines.append)
    assert "recall" not in headline
    assert rows[0]["recall_of_all"] == 1
    assert "the scann package is not installed: only the exact search is measured" in lines


def test_an_embedding_is_judged_by_equal_continuations_and_accepted_characters() -> None:
    entries = [Place(f"{name} = ", f"{name}()\nnext") for name in "abcde"]
    queries = [Place("a = ", "a()\nnext"), Place("b = ", "a()\nother"), Place("z = ", "nowhere")]
    vectors = np.eye(5, dtype=np.float32)
    asked = np.array([vectors[0], vectors[1] + 0.9 * vectors[0], vectors[4]])
    assert embedding._judge(entries, vectors, queries, asked) == {
        "recall_at_1": 0.5,
        "recall_at_4": 1.0,
        "accepted_chars": pytest.approx(8 / 3),
        "num_with_equal": 2,
    }
