"""Places in real source text."""

import pytest

from loadtest.source_text import CHARS_PER_TOKEN, choose_place


def test_the_same_number_is_the_same_place_and_another_number_another_one() -> None:
    assert choose_place(3, num_tokens=500) == choose_place(3, num_tokens=500)
    assert choose_place(3, num_tokens=500) != choose_place(4, num_tokens=500)


@pytest.mark.parametrize("num_tokens", [1, 100, 1469, 7303])
def test_a_place_is_as_long_as_asked_for_with_most_of_it_before_the_cursor(num_tokens: int) -> None:
    for number in range(20):
        place = choose_place(number, num_tokens=num_tokens)
        assert abs(len(place.before) + len(place.after) - num_tokens * CHARS_PER_TOKEN) <= 2
        assert len(place.before) >= len(place.after)
