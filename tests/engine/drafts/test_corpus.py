import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drafts import corpus as corpus_module
from engine.drafts.corpus import Corpora, Corpus, CorpusLookup
from engine.drafts.matching import TokenBuffer
from engine.drafts.sources import NO_DRAFT, Draft
from tests.engine.drafts import naive_drafts


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge after a few tokens, and take any difference for a new version."""
    monkeypatch.setattr(corpus_module, "_UNINDEXED", 5)
    monkeypatch.setattr(corpus_module, "_SIMILAR_TOKENS", 0)


def test_what_followed_the_last_tokens_in_another_text_is_proposed() -> None:
    corpus = Corpus(100)
    corpus.add([1, 2, 3, 4, 5])
    assert corpus.propose(TokenBuffer([9, 1, 2, 3]), 7) == Draft([4, 5], [1.0, 1.0], "corpus", 3)
    assert corpus.propose(TokenBuffer([9, 2, 3]), 7) == NO_DRAFT


def test_a_text_accepted_twice_outweighs_one_accepted_later() -> None:
    corpus = Corpus(100)
    for last in (4, 4, 5):
        corpus.add([1, 2, 3, last])
    assert corpus.propose(TokenBuffer([1, 2, 3]), 1) == Draft([4], [2 / 3], "corpus", 3)


def test_a_new_version_of_a_text_takes_the_place_of_the_old_one() -> None:
    corpus = Corpus(1000)
    corpus.add([1, 2, 3, *range(100, 200)], key="cart.ts")
    corpus.add([1, 2, 3, *range(300, 400)], key="cart.ts")
    assert corpus.propose(TokenBuffer([1, 2, 3]), 1).tokens == [300]
    assert corpus.num_tokens == 104


def test_a_version_that_hardly_differs_is_not_stored_again() -> None:
    corpus = Corpus(10_000)
    text = list(range(1000))
    corpus.add(text, key="cart.ts")
    corpus.add([*text[:500], *range(2000, 2064), *text[500:]], key="cart.ts")
    assert [each.tolist() for each in corpus.texts()] == [text]
    changed = [*text[:500], *range(2000, 2065), *text[500:]]
    corpus.add(changed, key="cart.ts")
    assert [each.tolist() for each in corpus.texts()] == [changed]


def test_the_text_used_longest_ago_leaves_first() -> None:
    corpus = Corpus(15)
    corpus.add([1, 2, 3, 4], key="old")
    corpus.add([5, 6, 7, 8], key="older, had it not been used")
    corpus.propose(TokenBuffer([1, 2, 3]), 1)
    corpus.add([10, 11, 12, 13, 14])
    assert [text.tolist() for text in corpus.texts()] == [[1, 2, 3, 4], [10, 11, 12, 13, 14]]


def test_of_a_text_longer_than_the_budget_the_end_is_kept() -> None:
    corpus = Corpus(5)
    corpus.add(list(range(10)))
    assert [text.tolist() for text in corpus.texts()] == [[6, 7, 8, 9]]


@pytest.mark.usefixtures("small_index")
@settings(max_examples=200)
@given(st.data())
def test_a_corpus_answers_what_a_search_in_all_its_texts_would(data: st.DataObject) -> None:
    corpus = Corpus(60)
    token = st.integers(0, 2)
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from([None, "a", "b", "c"]))
            corpus.add(data.draw(st.lists(token, max_size=20)), key=key)
        else:
            history = data.draw(st.lists(token, max_size=20))
            limit = data.draw(st.integers(1, 8))
            texts = [text.tolist() for text in corpus.texts()]
            draft = corpus.propose(TokenBuffer(history), limit)
            expected = naive_drafts.propose(texts, history, limit, least_match=3)
            assert (draft.tokens, draft.shares, draft.match_length) == expected
        corpus.check_integrity()


@pytest.mark.usefixtures("small_index")
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.lists(st.integers(0, 9), max_size=12)), max_size=40)
)
def test_the_texts_are_those_added_last_as_many_as_the_budget_holds(
    added: list[tuple[str | None, list[int]]],
) -> None:
    corpus = Corpus(40)
    kept: list[tuple[str | None, list[int]]] = []
    for key, text in added:
        corpus.add(text, key=key)
        if text:
            kept = [(other, old) for other, old in kept if other is None or other != key]
            kept.append((key, text))
            while sum(len(old) + 1 for _, old in kept) > 40:
                kept.pop(0)
        assert sorted(each.tolist() for each in corpus.texts()) == sorted(old for _, old in kept)


def test_many_texts_are_found_across_merges_and_compactions() -> None:
    corpus, draw = Corpus(20_000), np.random.default_rng(0)
    texts = [draw.integers(0, 30_000, 900) for _ in range(60)]
    for number, text in enumerate(texts):
        corpus.add(text)
        for older in texts[max(0, number - 21) : number + 1]:
            assert corpus.propose(TokenBuffer(older[100:103]), 4).tokens == older[103:107].tolist()
    corpus.check_integrity()
    assert corpus.propose(TokenBuffer(texts[0][100:103]), 4) == NO_DRAFT


def test_tenants_do_not_share_texts() -> None:
    corpora = Corpora()
    corpora.add("one", [1, 2, 3, 4])
    history = TokenBuffer([1, 2, 3])
    assert CorpusLookup(corpora, "two").propose(history, 1) == NO_DRAFT
    assert CorpusLookup(corpora, "one").propose(history, 1).tokens == [4]


def test_a_text_added_while_a_sequence_runs_is_found_by_it() -> None:
    corpora = Corpora()
    drafter = CorpusLookup(corpora, "one")
    corpora.add("one", [1, 2, 3, 4])
    assert drafter.propose(TokenBuffer([1, 2, 3]), 1).tokens == [4]


def test_no_match_and_no_draft_crosses_a_marker() -> None:
    corpora = Corpora(markers=[99])
    corpora.add("", [1, 2, 3, 4, 99, 5, 6, 7, 8])
    corpus = corpora.of("")
    assert corpus is not None
    assert corpus.propose(TokenBuffer([1, 2, 3]), 9).tokens == [4]
    assert corpus.propose(TokenBuffer([4, 99, 5]), 9) == NO_DRAFT
    corpora.check_integrity()


def test_the_tenant_whose_corpus_was_used_longest_ago_leaves_first() -> None:
    corpora = Corpora(budget_tokens=20, tenant_tokens=10)
    for tenant in ("one", "two"):
        corpora.add(tenant, range(8))
    corpora.of("one")
    corpora.add("three", range(8))
    assert [corpora.of(tenant) is not None for tenant in ("one", "two", "three")] == [True, False, True]
    corpora.check_integrity()


def test_a_budget_of_nothing_holds_nothing() -> None:
    corpora = Corpora(budget_tokens=0)
    corpora.add("one", [1, 2, 3, 4])
    assert (corpora.of("one"), corpora.num_tokens) == (None, 0)
