import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.drafts.matching import END, MAX_MATCH, TokenBuffer, find_places, likeliest_continuation, longest_match


def test_a_buffer_grows_and_stays_closed_by_ends() -> None:
    buffer = TokenBuffer([1, 2], room=1)
    for token in range(100):
        buffer.append([token, token])
    assert len(buffer) == 202
    assert buffer.array[MAX_MATCH : buffer.stop].tolist() == [1, 2, *np.repeat(np.arange(100), 2).tolist()]
    assert (buffer.array[:MAX_MATCH] == END).all()
    assert buffer.array[buffer.stop] == END


def test_the_tail_begins_with_the_last_token_and_what_is_missing_equals_nothing() -> None:
    tail = TokenBuffer([7, 8, 9]).tail()
    assert tail[:3].tolist() == [9, 8, 7]
    assert not np.isin(tail[3:], [END, 0, 7, 8, 9]).any()


def test_a_match_does_not_run_across_an_end() -> None:
    text = TokenBuffer([1, END, 2, 3, 4])
    length, places = longest_match(
        text.array, find_places(text.array, MAX_MATCH, text.stop, 3), TokenBuffer([1, END, 2, 3]).tail()
    )
    assert (length, places.tolist()) == (2, [MAX_MATCH + 3])


@pytest.mark.parametrize(
    ("ways", "tokens", "shares"),
    [
        ([[5, 6], [5, 7], [5, 6]], [5, 6], [1, 2 / 3]),
        ([[5, 6], [5, 7]], [5, 7], [1, 1 / 2]),  # a tie: the latest
        ([[5, 6, 8], [5]], [5, 6, 8], [1, 1, 1]),  # a place that ends has no say in what follows
        ([[i] for i in range(2, 13)], [], []),  # one of eleven is less than a tenth
    ],
)
def test_the_most_frequent_way_is_taken(ways: list[list[int]], tokens: list[int], shares: list[float]) -> None:
    text, places = TokenBuffer(), []
    for way in ways:
        text.append([1, *way, END])
        places.append(text.stop - len(way) - 2)
    assert likeliest_continuation(text.array, np.array(places), 3) == (tokens, shares)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=60),
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
)
def test_the_longest_match_is_the_one_that_a_search_at_every_place_finds(text: list[int], history: list[int]) -> None:
    buffer = TokenBuffer(text)
    places = find_places(buffer.array, MAX_MATCH, buffer.stop, history[-1])
    expected = [end for end in range(len(text) - 1) if text[end] == history[-1]]
    assert (places - MAX_MATCH).tolist() == expected
    if expected:
        lengths = {
            end: next(
                n
                for n in range(1, 18)
                if n > min(end + 1, len(history), 16) or text[end + 1 - n : end + 1] != history[-n:]
            )
            - 1
            for end in expected
        }
        length, places = longest_match(buffer.array, places, TokenBuffer(history).tail())
        assert length == max(lengths.values())
        assert (places - MAX_MATCH).tolist() == [end for end in expected if lengths[end] == length]
