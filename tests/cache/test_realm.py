"""One realm: entries, exact vectors and ScaNN's index stay together whatever happens."""

import logging
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cache import realm as realm_module
from cache.neighbours import FEWEST_FOR_SCANN, ScannNeighbours, has_scann
from cache.realm import Realm
from cache.snapshot import Entry
from tests.cache.test_neighbours import make_vectors

needs_scann = pytest.mark.skipif(not has_scann(), reason="the scann package is not installed")


def make_entry(number: int) -> Entry:
    return Entry(number.to_bytes(32, "big"), f"head {number}", f"text {number}", 0.0)


def make_realm(vectors: np.ndarray) -> Realm:
    realm = Realm("t", vectors.shape[1])
    for number, vector in enumerate(vectors):
        realm.insert(make_entry(number), vector)
    return realm


def test_the_same_digest_again_replaces() -> None:
    realm = Realm("t", 2)
    for vector in ([1, 0], [0, 1]):
        realm.insert(make_entry(1), np.array(vector, np.float32))
    assert len(realm) == 1
    assert realm.nearest(np.array([0, 1], np.float32), 2) == [(make_entry(1), 1.0)]
    realm.check_integrity()


def test_the_oldest_goes_first() -> None:
    realm = make_realm(np.eye(3, dtype=np.float32))
    realm.insert(make_entry(0), np.ones(3, np.float32))  # new again
    assert realm.discard_oldest() == 1
    assert {entry.digest for entry, _ in realm.nearest(np.ones(3, np.float32), 9)} == {
        make_entry(number).digest for number in (0, 2)
    }
    assert (realm.discard(make_entry(2).digest), realm.discard(make_entry(2).digest)) == (1, 0)
    assert (realm.discard_oldest(), realm.discard_oldest()) == (1, 0)
    realm.check_integrity()


def test_a_snapshot_brings_everything_back_as_older_than_what_is_there() -> None:
    saved = make_realm(np.eye(3, dtype=np.float32)).take_snapshot("e")
    realm = Realm("t", 3)
    realm.insert(make_entry(1), np.full(3, 2, np.float32))
    realm.insert(make_entry(7), np.full(3, 3, np.float32))
    realm.restore(saved)
    realm.check_integrity()
    again = realm.take_snapshot("e")
    assert again.entries == [make_entry(number) for number in (0, 2, 1, 7)]
    assert again.vectors[:, 1].tolist() == [0, 0, 2, 3]


@needs_scann
def test_an_index_is_claimed_once_when_there_is_enough_and_again_when_as_much_has_changed() -> None:
    vectors = make_vectors(2 * FEWEST_FOR_SCANN)
    realm = make_realm(vectors[: FEWEST_FOR_SCANN - 1])
    assert not realm.claim_build()
    realm.insert(make_entry(FEWEST_FOR_SCANN), vectors[-1])
    assert realm.claim_build()
    assert not realm.claim_build()
    realm.build_index()
    assert realm.is_indexed
    assert not realm.claim_build()
    for number in range(FEWEST_FOR_SCANN):
        realm.insert(make_entry(10_000 + number), vectors[number])
    assert realm.claim_build()
    realm.build_index()
    realm.check_integrity()


def test_without_scann_no_index_is_claimed_and_the_exact_vectors_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realm_module, "has_scann", lambda: False)
    vectors = make_vectors(FEWEST_FOR_SCANN)
    realm = make_realm(vectors)
    assert not realm.claim_build()
    assert realm.nearest(vectors[-1], 1)[0][0] == make_entry(FEWEST_FOR_SCANN - 1)


@needs_scann
def test_what_changes_while_an_index_is_built_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = make_vectors(FEWEST_FOR_SCANN + 10)
    realm = make_realm(vectors[:FEWEST_FOR_SCANN])

    def build(names: list[int], matrix: np.ndarray) -> ScannNeighbours:
        built = ScannNeighbours(names, matrix)
        for number in range(FEWEST_FOR_SCANN, FEWEST_FOR_SCANN + 10):
            realm.insert(make_entry(number), vectors[number])
            realm.discard_oldest()
        return built

    monkeypatch.setattr(realm_module, "ScannNeighbours", build)
    realm.build_index()
    assert realm.is_indexed
    realm.check_integrity()
    assert realm.nearest(vectors[-1], 1)[0][0] == make_entry(FEWEST_FOR_SCANN + 9)


@needs_scann
def test_an_index_that_fails_is_dropped_and_the_exact_vectors_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = make_vectors(FEWEST_FOR_SCANN + 1)
    realm = make_realm(vectors[:-1])
    realm.build_index()

    def fail(*_: object) -> None:
        raise RuntimeError("half-way")

    monkeypatch.setattr(ScannNeighbours, "insert", fail)
    with caplog.at_level(logging.ERROR):
        realm.insert(make_entry(99_999), vectors[-1])
    assert f"the index of {FEWEST_FOR_SCANN + 1} places failed and is dropped; it will be built anew" in caplog.text
    assert not realm.is_indexed
    assert realm.nearest(vectors[-1], 1)[0][0] == make_entry(99_999)
    assert realm.claim_build()
    realm.check_integrity()


@needs_scann
def test_an_index_that_cannot_be_built_is_not_tried_at_every_insertion(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no partitions")

    vectors = make_vectors(2 * FEWEST_FOR_SCANN)
    realm = make_realm(vectors[:FEWEST_FOR_SCANN])
    assert realm.claim_build()
    with monkeypatch.context() as patch:
        patch.setattr(realm_module, "ScannNeighbours", fail)
        with pytest.raises(RuntimeError, match="no partitions"):
            realm.build_index()
    for number in range(FEWEST_FOR_SCANN):
        assert not realm.claim_build()
        realm.insert(make_entry(10_000 + number), vectors[number])
    assert realm.claim_build()
    realm.build_index()
    assert realm.is_indexed


@needs_scann
def test_a_realm_that_has_become_small_does_without_an_index() -> None:
    realm = make_realm(make_vectors(FEWEST_FOR_SCANN))
    realm.build_index()
    for _ in range(FEWEST_FOR_SCANN // 2 + 1):
        realm.discard_oldest()
    assert not realm.is_indexed
    realm.check_integrity()


@needs_scann
def test_threads_insert_search_and_build_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realm_module, "FEWEST_FOR_SCANN", 64)
    monkeypatch.setattr("cache.neighbours.FEWEST_FOR_SCANN", 64)
    vectors = make_vectors(1_500, 16)
    realm = make_realm(vectors[:500])
    failures = list[BaseException]()

    def work(first: int) -> None:
        try:
            for number in range(first, first + 250):
                realm.insert(make_entry(number), vectors[number])
                realm.nearest(vectors[number - 400], 4)
                realm.discard(make_entry(number - 500).digest)
                if realm.claim_build():
                    realm.build_index()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (500, 750, 1_000, 1_250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert realm.is_indexed
    realm.check_integrity()


class RealmMachine(RuleBasedStateMachine):
    """Small realms with an index of their own, against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = make_vectors(256, 16)
        self.realm = make_realm(self.vectors[:200])
        self.twin = {number: number for number in range(200)}

    @rule(number=st.integers(0, 255), row=st.integers(0, 255))
    def insert(self, number: int, row: int) -> None:
        self.realm.insert(make_entry(number), self.vectors[row])
        self.twin.pop(number, None)
        self.twin[number] = row

    @rule(number=st.integers(0, 255))
    def discard(self, number: int) -> None:
        assert self.realm.discard(make_entry(number).digest) == (self.twin.pop(number, None) is not None)

    @rule()
    def discard_oldest(self) -> None:
        if self.twin:
            del self.twin[next(iter(self.twin))]
        self.realm.discard_oldest()

    @rule()
    def build_index(self) -> None:
        self.realm.build_index()

    @rule()
    def save_and_restore(self) -> None:
        saved = self.realm.take_snapshot("e")
        self.realm = Realm("t", 16)
        self.realm.restore(saved)

    @rule(row=st.integers(0, 255))
    def search(self, row: int) -> None:
        for entry, score in self.realm.nearest(self.vectors[row], 4):
            number = int.from_bytes(entry.digest, "big")
            expected = float(self.vectors[row] @ self.vectors[self.twin[number]])
            assert score == pytest.approx(expected, abs=1e-4)

    @invariant()
    def is_whole(self) -> None:
        self.realm.check_integrity()
        assert [int.from_bytes(entry.digest, "big") for entry in self.realm.take_snapshot("e").entries] == list(
            self.twin
        )


@needs_scann
def test_random_operations_keep_a_realm_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realm_module, "FEWEST_FOR_SCANN", 64)
    monkeypatch.setattr("cache.neighbours.FEWEST_FOR_SCANN", 64)
    run_state_machine_as_test(RealmMachine, settings=settings(max_examples=20, stateful_step_count=30))
