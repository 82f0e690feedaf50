import pytest

from engine.drafts.acceptance import Acceptance
from engine.drafts.corpus import Corpora
from engine.drafts.drafting import Drafting
from engine.drafts.sources import NO_DRAFT, Draft


@pytest.fixture
def acceptance() -> Acceptance:
    return Acceptance()


@pytest.fixture
def corpora() -> Corpora:
    return Corpora()


@pytest.fixture
def drafting(acceptance: Acceptance, corpora: Corpora) -> Drafting:
    return Drafting(acceptance, corpora, markers=[99])


def test_without_any_match_there_is_no_draft(drafting: Drafting) -> None:
    assert drafting.propose(drafting.begin([1, 2, 3], tenant=""), 7) == NO_DRAFT


def test_a_sequence_is_drafted_from_its_own_text_as_it_grows(drafting: Drafting) -> None:
    sources = drafting.begin([1, 2, 3, 4, 1, 8], tenant="")
    assert drafting.propose(sources, 2) == NO_DRAFT
    sources.append([2])
    assert drafting.propose(sources, 2).tokens == [3, 4]


def test_a_given_text_is_followed_first(drafting: Drafting) -> None:
    sources = drafting.begin([1, 2, 3, 1, 2], tenant="", given=[7, 8, 9])
    draft = drafting.propose(sources, 3)
    assert (draft.tokens, draft.source) == ([7, 8, 9], "given")


def test_the_source_that_proved_better_is_taken(drafting: Drafting, acceptance: Acceptance) -> None:
    sources = drafting.begin([1, 2, 3, 4, 1, 2], tenant="", given=[7, 8, 9])
    for _ in range(20):
        acceptance.record(Draft([7, 8, 9], [1.0] * 3, "given", 0), num_verified=3, num_accepted=0)
    draft = drafting.propose(sources, 3)
    assert (draft.tokens, draft.source) == ([3, 4, 1], "prompt")


def test_a_longer_match_in_the_corpus_beats_a_shorter_one_in_the_prompt(drafting: Drafting, corpora: Corpora) -> None:
    corpora.add("me", [1, 2, 3, 4, 5, 6, 7, 8])
    draft = drafting.propose(drafting.begin([4, 5, 9, 1, 2, 3, 4, 5], tenant="me"), 2)
    assert (draft.tokens, draft.source) == ([6, 7], "corpus")


def test_texts_of_another_tenant_are_not_drafted_from(drafting: Drafting, corpora: Corpora) -> None:
    corpora.add("other", [1, 2, 3, 4])
    assert drafting.propose(drafting.begin([1, 2, 3], tenant="me"), 2) == NO_DRAFT


def test_a_draft_stops_before_a_marker(drafting: Drafting) -> None:
    sources = drafting.begin([1, 2, 3, 99, 4, 1, 2], tenant="")
    assert drafting.propose(sources, 5).tokens == [3]


def test_no_room_means_no_draft(drafting: Drafting) -> None:
    assert drafting.propose(drafting.begin([1, 2, 3, 1, 2], tenant=""), 0) == NO_DRAFT
