"""Nearest neighbours: the obvious way against a plain sort, ScaNN against the obvious way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.errors import VectorError
from cache.neighbours import FEWEST_FOR_SCANN, ExactNeighbours, ScannNeighbours, check_vector, has_scann

needs_scann = pytest.mark.skipif(not has_scann(), reason="the scann package is not installed")


def make_vectors(count: int, dimension: int = 32, seed: int = 0) -> np.ndarray:
    """Return vectors of length 1 in clusters, as embeddings of code are; some are exactly alike."""
    chooser = np.random.default_rng(seed)
    centres = chooser.normal(size=(max(1, count // 40), dimension))
    vectors = centres[chooser.integers(0, len(centres), count)] + 0.5 * chooser.normal(size=(count, dimension))
    vectors[: count // 10] = vectors[count // 10 : 2 * (count // 10)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(3), r"the embedder gave a vector of shape \(3,\) and type float64; expected 4 numbers, as its dimen"),
        (np.zeros((1, 4)), r"of shape \(1, 4\)"),
        (np.array(["a"] * 4), "type <U1"),
        (np.array([0, np.nan, 0, 0]), "the embedder gave a vector with NaN or infinity; expected finite numbers"),
        (np.array([0, 1e300, 0, 0]), "NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_what_is_no_vector_is_refused(vector: np.ndarray, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        check_vector(vector, 4)


def test_whole_numbers_become_a_vector() -> None:
    checked = check_vector(np.array([1, 2]), 2)
    assert (checked.dtype, checked.tolist()) == (np.float32, [1.0, 2.0])


def test_fewer_are_found_than_asked_for_when_there_are_no_more() -> None:
    neighbours = ExactNeighbours(2)
    assert neighbours.search(np.ones(2, np.float32), 3) == []
    neighbours.insert(7, np.array([1, 0], np.float32))
    assert neighbours.search(np.ones(2, np.float32), 3) == [(7, 1.0)]


class ExactMachine(RuleBasedStateMachine):
    """Against a dictionary that is sorted for every search."""

    vectors = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda numbers: np.array(numbers, np.float32))

    def __init__(self) -> None:
        super().__init__()
        self.neighbours = ExactNeighbours(3)
        self.twin: dict[int, np.ndarray] = {}

    @rule(name=st.integers(0, 200), vector=vectors)
    def insert(self, name: int, vector: np.ndarray) -> None:
        if name not in self.twin:
            self.neighbours.insert(name, vector)
            self.twin[name] = vector

    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        if self.twin:
            name = data.draw(st.sampled_from(sorted(self.twin)))
            self.neighbours.delete(name)
            del self.twin[name]

    @rule(vector=vectors, count=st.integers(1, 4))
    def search(self, vector: np.ndarray, count: int) -> None:
        found = self.neighbours.search(vector, count)
        scores = sorted((float(vector @ other) for other in self.twin.values()), reverse=True)
        assert [score for _, score in found] == scores[:count]
        assert all(float(vector @ self.twin[name]) == score for name, score in found)

    @invariant()
    def is_whole(self) -> None:
        self.neighbours.check_integrity()
        assert set(self.neighbours.names) == set(self.twin)


TestExactMachine = ExactMachine.TestCase


@needs_scann
def test_scann_finds_nearly_what_comparing_with_all_finds_before_and_after_changes() -> None:
    count = 3 * FEWEST_FOR_SCANN
    vectors = make_vectors(count)
    exact = ExactNeighbours(32)
    for name in range(FEWEST_FOR_SCANN * 2):
        exact.insert(name, vectors[name])
    scann = ScannNeighbours(exact.names, exact.matrix)
    for name in range(FEWEST_FOR_SCANN * 2, count):
        exact.insert(name, vectors[name])
        scann.insert(name, vectors[name])
    for name in range(0, count, 3):
        exact.delete(name)
        scann.delete(name)
    scann.check_integrity()
    assert len(scann) == len(exact)
    num_found = 0
    for query in vectors[:200] + 0.2 * make_vectors(200, seed=1):
        oracle = exact.search(query, 4)
        found = scann.search(query, 4)
        assert all(float(query @ exact.vector_of(name)) == pytest.approx(score, abs=1e-4) for name, score in found)
        num_found += sum(score >= oracle[-1][1] - 1e-5 for _, score in found)
    assert num_found >= 0.95 * 4 * 200


@needs_scann
def test_scann_finds_an_inserted_vector_at_once_and_a_deleted_one_never_again() -> None:
    vectors = make_vectors(FEWEST_FOR_SCANN)
    scann = ScannNeighbours(range(FEWEST_FOR_SCANN), vectors)
    mine = vectors[-1] * np.float32(1.001)
    scann.insert(99_999, mine)
    assert scann.search(mine, 1)[0][0] == 99_999
    scann.delete(99_999)
    assert 99_999 not in [name for name, _ in scann.search(mine, 8)]


@needs_scann
def test_all_can_be_deleted_from_scann_and_then_nothing_is_found() -> None:
    scann = ScannNeighbours(range(FEWEST_FOR_SCANN), make_vectors(FEWEST_FOR_SCANN))
    for name in range(FEWEST_FOR_SCANN):
        scann.delete(name)
    scann.check_integrity()
    assert scann.search(np.ones(32, np.float32), 4) == []


@needs_scann
def test_vectors_that_are_all_alike_can_be_indexed() -> None:
    scann = ScannNeighbours(range(FEWEST_FOR_SCANN), np.ones((FEWEST_FOR_SCANN, 32), np.float32))
    assert scann.search(np.ones(32, np.float32), 1)[0][1] == pytest.approx(32.0)


@needs_scann
def test_a_call_that_fails_half_way_breaks_the_index_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    scann = ScannNeighbours(range(FEWEST_FOR_SCANN), make_vectors(FEWEST_FOR_SCANN))

    def fail(*_: object) -> None:
        raise RuntimeError("half-way")

    monkeypatch.setattr(scann._searcher, "upsert", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        scann.insert(99_999, np.ones(32, np.float32))
    assert scann.is_broken
    with pytest.raises(AssertionError, match="the index broke and is still used"):
        scann.check_integrity()
