from hypothesis import given
from hypothesis import strategies as st

from engine.drafts.matching import TokenBuffer
from engine.drafts.sources import NO_DRAFT, Draft, GivenText, PromptLookup
from tests.engine.drafts import naive_drafts


def test_what_followed_the_last_tokens_before_is_proposed() -> None:
    draft = PromptLookup().propose(TokenBuffer([1, 2, 3, 4, 5, 9, 1, 2, 3]), 2)
    assert draft == Draft([4, 5], [1.0, 1.0], "prompt", 3)


def test_a_token_that_is_new_has_no_draft() -> None:
    assert PromptLookup().propose(TokenBuffer([1, 2, 3, 4]), 2) == NO_DRAFT


def test_an_empty_history_has_no_draft() -> None:
    assert PromptLookup().propose(TokenBuffer(), 2) == NO_DRAFT


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(1, 8))
def test_prompt_lookup_is_a_search_in_the_whole_history(history: list[int], limit: int) -> None:
    draft = PromptLookup().propose(TokenBuffer(history), limit)
    tokens, shares, length = naive_drafts.propose([history], history, limit, least_match=1)
    assert (draft.tokens, draft.shares, draft.match_length) == (tokens, shares, length)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.data())
def test_a_given_text_that_comes_out_is_followed_to_its_end(text: list[int], data: st.DataObject) -> None:
    history = TokenBuffer([1, 2, 3])
    drafter = GivenText(text, num_prompt_tokens=3)
    at = 0
    while at < len(text):
        assert drafter.propose(history, 5) == Draft(text[at : at + 5], [1.0] * len(text[at : at + 5]), "given", at)
        step = data.draw(st.integers(1, 5))
        history.append(text[at : at + step])
        at += step
    assert drafter.propose(history, 5).tokens == []


def test_after_a_token_that_differs_the_given_text_is_found_again() -> None:
    drafter = GivenText([10, 11, 12, 13, 14], num_prompt_tokens=1)
    history = TokenBuffer([1, 10, 99])
    assert drafter.propose(history, 2) == NO_DRAFT
    history.append([12])
    assert drafter.propose(history, 2) == Draft([13, 14], [1.0, 1.0], "given", 1)


def test_after_tokens_that_the_given_text_lacks_it_is_found_again() -> None:
    drafter = GivenText([10, 11, 12, 13], num_prompt_tokens=0)
    history = TokenBuffer([10, 50, 51, 52, 11, 12])
    assert drafter.propose(history, 4) == Draft([13], [1.0], "given", 2)


def test_of_equal_places_in_a_given_text_the_one_nearest_to_where_it_was_left_is_taken() -> None:
    drafter = GivenText([5, 1, 6, 2, 7, 3, 5, 8], num_prompt_tokens=0)
    history = TokenBuffer([5, 1, 6, 9, 7, 3, 99])
    assert drafter.propose(history, 9) == NO_DRAFT
    history.append([5])
    assert drafter.propose(history, 9).tokens == [8]
    near_the_start = GivenText([5, 1, 6, 2, 7, 3, 5, 8], num_prompt_tokens=0)
    assert near_the_start.propose(TokenBuffer([9, 5]), 2).tokens == [1, 6]


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20), st.integers(1, 8))
def test_whatever_comes_out_a_given_text_is_proposed_from_where_its_match_ends(
    text: list[int], output: list[int], limit: int
) -> None:
    drafter = GivenText(text, num_prompt_tokens=0)
    history = TokenBuffer()
    for at, token in enumerate(output):
        history.append([token])
        draft = drafter.propose(history, limit)
        assert len(draft.tokens) <= limit
        if draft.tokens:
            agreed = output[: at + 1][-draft.match_length :] + draft.tokens
            assert any(text[i : i + len(agreed)] == agreed for i in range(len(text)))
        else:
            assert draft.match_length or token not in text[:-1]
