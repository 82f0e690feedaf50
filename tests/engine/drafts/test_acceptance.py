import pytest

from engine.drafts.acceptance import Acceptance, DraftCounts
from engine.drafts.sources import NO_DRAFT, Draft


def draft(num_tokens: int = 4, *, share: float = 1.0, source: str = "prompt", match_length: int = 3) -> Draft:
    return Draft(list(range(num_tokens)), [share] * num_tokens, source, match_length)


def test_totals_are_kept_by_source() -> None:
    acceptance = Acceptance()
    acceptance.record(draft(), num_verified=3, num_accepted=2)
    acceptance.record(draft(match_length=9), num_verified=1, num_accepted=0)
    acceptance.record(draft(source="given"), num_verified=4, num_accepted=4)
    acceptance.record(draft(), num_verified=0, num_accepted=0)
    assert acceptance.counts() == {
        "prompt": DraftCounts(num_drafts=2, num_proposed_tokens=4, num_accepted_tokens=2),
        "given": DraftCounts(num_drafts=1, num_proposed_tokens=4, num_accepted_tokens=4),
    }


def test_more_accepted_than_verified_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="more accepted than verified"):
        Acceptance().record(draft(), num_verified=1, num_accepted=2)


def test_without_tokens_nothing_is_expected() -> None:
    assert Acceptance().expected(NO_DRAFT) == [0.0]


def test_what_is_expected_becomes_what_is_observed() -> None:
    acceptance = Acceptance()
    for _ in range(100):  # first token right in half of the drafts, then always three more
        acceptance.record(draft(), num_verified=4, num_accepted=4)
        acceptance.record(draft(), num_verified=4, num_accepted=0)
    assert acceptance.expected(draft()) == pytest.approx([0, 0.5, 1, 1.5, 2], abs=0.06)


def test_kinds_of_drafts_are_told_apart() -> None:
    acceptance = Acceptance()
    untouched = acceptance.expected(draft(match_length=8)), acceptance.expected(draft(source="corpus"))
    for _ in range(50):
        acceptance.record(draft(match_length=3), num_verified=4, num_accepted=0)
    assert acceptance.expected(draft(match_length=2))[-1] < 0.05  # of one kind with 3
    assert untouched == (acceptance.expected(draft(match_length=8)), acceptance.expected(draft(source="corpus")))


def test_a_share_lowers_what_is_expected_and_what_is_learnt_from_a_refusal() -> None:
    acceptance = Acceptance()
    assert acceptance.expected(draft(share=0.5))[-1] < acceptance.expected(draft())[-1]
    for _ in range(100):  # half of the places agree, and half of the drafts are right: all that can be asked of them
        acceptance.record(draft(1, share=0.5), num_verified=1, num_accepted=1)
        acceptance.record(draft(1, share=0.5), num_verified=1, num_accepted=0)
    assert acceptance.expected(draft(1, share=0.5))[-1] == pytest.approx(0.5, abs=0.03)
    assert acceptance.expected(draft(1))[-1] == pytest.approx(1.0, abs=0.06)


def test_old_observations_fade() -> None:
    acceptance = Acceptance()
    for _ in range(1000):
        acceptance.record(draft(1), num_verified=1, num_accepted=0)
    for _ in range(100):
        acceptance.record(draft(1), num_verified=1, num_accepted=1)
    assert acceptance.expected(draft(1))[-1] > 0.9
