import numpy as np
import pytest

from loadtest.benchmarks import sparse_quality
from loadtest.benchmarks.sparse import crossover
from loadtest.errors import RunError


def test_the_crossover_is_where_sparse_stays_clearly_faster() -> None:
    dense = np.ones(6)
    assert crossover(np.stack([dense, np.array([2, 0, 1, 0.5, 0.5, 0.5])])) == 4 * 256, (
        "it was faster before, and slower"
    )
    assert crossover(np.stack([dense, dense * 0.5])) == 256
    assert crossover(np.stack([dense, dense])) == 0


def test_the_change_of_exact_matches_is_relative_and_paired() -> None:
    same = {"dense_exact": True, "sparse_exact": True, "dense_similarity": 1.0, "sparse_similarity": 1.0}
    lost = {"dense_exact": True, "sparse_exact": False, "dense_similarity": 1.0, "sparse_similarity": 0.5}
    wrong = {"dense_exact": False, "sparse_exact": False, "dense_similarity": 0.5, "sparse_similarity": 0.5}
    rows = [{**same, "is_unchanged": True}] * 3 + [{**lost, "is_unchanged": False}, {**wrong, "is_unchanged": True}]
    figures = sparse_quality.summarise(rows)
    assert figures["exact_match_relative_change"] == pytest.approx(-0.25)
    assert figures["unchanged"] == pytest.approx(0.8)
    assert figures["edit_similarity_change"] == pytest.approx(-0.1)
    assert figures["unchanged_low"] < 0.8 < figures["unchanged_high"]


def test_quality_without_rows_says_how_to_make_them(monkeypatch) -> None:
    monkeypatch.delenv("CLOUDCOMPLETE_ROWS", raising=False)
    with pytest.raises(RunError, match=r"expected CLOUDCOMPLETE_ROWS to name a file .* engine\.training rows FILE"):
        sparse_quality.measure(lambda _: None)
