"""Tier 2: drafts of like places, realms apart, bounded, on disk."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.embedder import HashedTokens
from cache.errors import VectorError
from cache.key import Draft
from cache.similarity_tier import SimilarityTier, fit
from cache.snapshot import snapshots_of
from cache.worker import Worker
from tests.cache.made_keys import Clock, make_answer, make_key


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test")
    yield worker
    assert worker.close(timeout_s=30)


def make_tier(
    worker: Worker,
    *,
    directory: Path | None = None,
    max_entries: int = 100,
    min_score: float = 0.3,
    clock: Clock | None = None,
    dimension: int = 64,
) -> SimilarityTier:
    return SimilarityTier(
        HashedTokens(dimension),
        max_entries=max_entries,
        ttl_s=60,
        min_score=min_score,
        worker=worker,
        directory=directory,
        now=clock or Clock(),
    )


HERE = "class A:\n    def area(self):\n        return self."
THERE = "class B:\n    def area(self):\n        return self."
ELSEWHERE = "#include <stdio.h>\n\nint main("


def test_what_followed_at_a_like_place_is_a_draft(worker: Worker) -> None:
    tier = make_tier(worker)
    tier.store(make_key(HERE), make_answer("width * self.height", beyond="\n\n"))
    draft = tier.draft_for(make_key(THERE, after="something else", context_hash="other", max_tokens=3))
    assert draft is not None
    assert draft.text == "width * self.height\n\n"
    assert 0.5 < draft.score < 1
    tier.check_integrity()


def test_a_place_that_is_not_like_any_has_no_draft(worker: Worker) -> None:
    tier = make_tier(worker)
    assert tier.draft_for(make_key(HERE)) is None
    tier.store(make_key(HERE), make_answer())
    assert tier.draft_for(make_key(ELSEWHERE)) is None


def test_an_answer_without_text_is_not_remembered(worker: Worker) -> None:
    tier = make_tier(worker)
    tier.store(make_key(HERE), make_answer(" \n"))
    assert len(tier) == 0


@pytest.mark.parametrize("change", [{"tenant": "u"}, {"model": "n"}, {"template": "n"}])
def test_another_tenant_model_or_template_finds_nothing_and_searches_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    tier = make_tier(worker)
    for number in range(50):
        tier.store(make_key(f"{HERE}{number}"), make_answer())
    mine = make_key(HERE, **change)
    searched = list[int]()
    search = "cache.neighbours.ExactNeighbours.search"
    monkeypatch.setattr(search, lambda self, vector, count: searched.append(len(self)) or [])
    assert tier.draft_for(mine) is None
    tier.store(mine, make_answer())
    assert tier.draft_for(mine) is None
    assert searched == [1], "a search went over entries of another realm, and took longer for it"


def test_a_tenant_does_not_wait_for_another_ones_search(worker: Worker) -> None:
    tier = make_tier(worker)
    tier.store(make_key(HERE), make_answer("a"))
    tier.store(make_key(HERE, tenant="u"), make_answer("b"))
    with tier._realms[make_key(HERE).realm]._lock:  # as while the other tenant searches
        draft = tier.draft_for(make_key(HERE, tenant="u"))
    assert draft is not None
    assert draft.text == "b"


def test_a_tenant_that_floods_the_tier_displaces_itself(worker: Worker) -> None:
    tier = make_tier(worker, max_entries=10)
    tier.store(make_key(HERE, tenant="small"), make_answer("mine"))
    for number in range(50):
        tier.store(make_key(f"{HERE}{number}", tenant="large"), make_answer())
    assert (len(tier), tier.num_evicted) == (10, 41)
    assert tier.draft_for(make_key(THERE, tenant="small")) is not None
    tier.check_integrity()


def test_what_is_too_old_is_no_draft(worker: Worker) -> None:
    clock = Clock()
    tier = make_tier(worker, clock=clock)
    tier.store(make_key(HERE), make_answer())
    clock.now_s += 61
    assert tier.draft_for(make_key(THERE)) is None
    assert (len(tier), tier.num_evicted) == (0, 1)


def test_an_embedder_that_breaks_its_word_is_refused(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = make_tier(worker)
    monkeypatch.setattr(HashedTokens, "embed", lambda self, before: np.full(self.dimension, np.nan))
    with pytest.raises(VectorError, match="NaN"):
        tier.store(make_key(HERE), make_answer())


@pytest.mark.parametrize(
    ("head", "text", "before", "draft"),
    [
        ("x = self.", "value()", "y = self.", "value()"),
        ("x = self.", "value()", "y = self.va", "lue()"),
        ("x = self.", "value()", "x = se", "lf.value()"),
        ("x = self.", "value()", "for i", "value()"),
        ("x = self.", "value()", "", "value()"),
        ("x = self.", "value()", "y = self.value()", ""),
        ("abcd", "abcdabcd", "abcd", "abcdabcd"),
        ("", "long text", "long", " text"),
    ],
)
def test_a_draft_is_shifted_to_fit_what_is_typed(head: str, text: str, before: str, draft: str) -> None:
    assert fit(head, text, before) == draft


def test_a_snapshot_brings_drafts_back_in_another_process(worker: Worker, tmp_path: Path) -> None:
    tier = make_tier(worker, directory=tmp_path)
    tier.store(make_key(HERE), make_answer("a"))
    tier.store(make_key(HERE, tenant="u"), make_answer("b"))
    tier.save()
    again = make_tier(worker, directory=tmp_path)
    again.draft_for(make_key(HERE))
    worker.drain(timeout_s=30)
    assert again.draft_for(make_key(HERE)) == Draft(text="a", score=pytest.approx(1.0))  # type: ignore[arg-type]
    assert len(again) == 1, "another tenant's snapshot is not read"
    again.check_integrity()


def test_only_realms_that_changed_are_saved(worker: Worker, tmp_path: Path) -> None:
    tier = make_tier(worker, directory=tmp_path)
    tier.store(make_key(HERE), make_answer())
    tier.save()
    [path] = snapshots_of(tmp_path, None)
    path.unlink()
    tier.save()
    assert snapshots_of(tmp_path, None) == []
    tier.store(make_key(THERE), make_answer())
    tier.save()
    assert snapshots_of(tmp_path, None) == [path]


def test_snapshots_too_old_for_anybody_are_removed(worker: Worker, tmp_path: Path) -> None:
    clock = Clock(0)
    tier = make_tier(worker, directory=tmp_path, clock=clock)
    tier.store(make_key(HERE), make_answer(created_s=0.0))
    tier.save()
    [path] = snapshots_of(tmp_path, None)
    clock.now_s = path.stat().st_mtime + 61
    tier.save()
    assert not path.exists()


def test_a_damaged_or_foreign_snapshot_is_logged_and_replaced(
    worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = make_tier(worker, directory=tmp_path)
    tier.store(make_key(HERE), make_answer("a"))
    tier.save()
    [path] = snapshots_of(tmp_path, None)
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:-1]), lambda: path.write_bytes(b"older")):
        spoil()
        again = make_tier(worker, directory=tmp_path)
        with caplog.at_level(logging.WARNING):
            again.store(make_key(HERE), make_answer("b"))
            worker.drain(timeout_s=30)
        assert f"{path} is not used: " in caplog.text
        assert again.num_refused_snapshots == 1
        draft = again.draft_for(make_key(HERE))
        assert draft is not None
        assert draft.text == "b"
        again.save()
        caplog.clear()
    other = make_tier(worker, directory=tmp_path, dimension=32)
    other.draft_for(make_key(HERE))
    worker.drain(timeout_s=30)
    assert (len(other), other.num_refused_snapshots) == (0, 1)


def test_a_full_disk_is_logged_and_the_tier_goes_on(
    worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tier = make_tier(worker, directory=tmp_path)
    tier.store(make_key(HERE), make_answer())
    monkeypatch.setattr("cache.snapshot.os.fsync", fail)
    with caplog.at_level(logging.WARNING):
        tier.save()
    assert "cannot write the snapshot" in caplog.text
    assert "No space left on device; the tier goes on without" in caplog.text
    assert tier.num_failed_saves == 1
    monkeypatch.undo()
    tier.save()
    assert len(snapshots_of(tmp_path, None)) == 1


def test_clearing_a_tenant_takes_its_snapshots_too_also_those_on_their_way(worker: Worker, tmp_path: Path) -> None:
    tier = make_tier(worker, directory=tmp_path)
    for tenant in ("t", "u"):
        tier.store(make_key(HERE, tenant=tenant), make_answer())
    tier.save()
    assert tier.clear("t") == 1
    assert len(snapshots_of(tmp_path, None)) == len(snapshots_of(tmp_path, "u")) == 1
    assert tier.draft_for(make_key(HERE, tenant="u")) is not None
    realm = tier._realms[make_key(tenant="u").realm]
    tier.store(make_key(THERE, tenant="u"), make_answer())
    take = realm.take_snapshot
    realm.take_snapshot = lambda name: (take(name), tier.clear())[0]  # type: ignore[method-assign]
    tier.save()
    assert list(tmp_path.iterdir()) == []
    assert len(tier) == 0


class SimilarityMachine(RuleBasedStateMachine):
    """Whatever happens: a draft comes from an entry of the same tenant that was not cleared."""

    befores = st.sampled_from([f"{start}{end}" for start in (HERE, THERE, ELSEWHERE) for end in ("", "w", "x, ")])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.worker = Worker("test")
        self.tier = make_tier(self.worker, max_entries=7, clock=self.clock, min_score=0)
        self.texts: dict[str, dict[str, float]] = {"t": {}, "u": {}}
        self.serial = 0

    @rule(before=befores, tenant=st.sampled_from("tu"))
    def store(self, before: str, tenant: str) -> None:
        self.serial += 1
        text = f"<{self.serial}>"
        self.tier.store(make_key(before, tenant=tenant), make_answer(text, created_s=self.clock.now_s))
        self.texts[tenant][text] = self.clock.now_s

    @rule(before=befores, tenant=st.sampled_from("tu"))
    def draft(self, before: str, tenant: str) -> None:
        draft = self.tier.draft_for(make_key(before, tenant=tenant))
        if draft is not None:
            text = draft.text[draft.text.index("<") :]
            assert self.clock.now_s - self.texts[tenant][text] <= 60

    @rule(tenant=st.sampled_from(["t", None]))
    def clear(self, tenant: str | None) -> None:
        self.tier.clear(tenant)
        for name in "tu" if tenant is None else tenant:
            self.texts[name] = {}

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        self.clock.now_s += seconds

    @invariant()
    def is_whole(self) -> None:
        self.tier.check_integrity()

    def teardown(self) -> None:
        self.worker.close(timeout_s=30)


TestSimilarityMachine = SimilarityMachine.TestCase
