"""Which key comes next: by what followed the same text elsewhere."""

from hypothesis import given
from hypothesis import strategies as st

from server.next_keys import LONGEST_CONTEXT, SHORTEST_CONTEXT, indentation_after, rank_keys


def test_what_followed_the_same_text_above_comes_first() -> None:
    [(key, probability), *_] = rank_keys("width: 1\nheight: 2\nwidth: 1\nheigh", "")
    assert key == "t"
    assert 0.5 < probability < 1


def test_text_below_the_cursor_counts_too() -> None:
    assert rank_keys("self.na", "\nself.name = name\n")[0][0] == "m"


def test_a_longer_match_outweighs_several_shorter_ones() -> None:
    assert rank_keys("a_long_name: x\nname, name, name, a_long_name", "")[0][0] == ":"


def test_without_a_place_like_this_there_is_no_guess() -> None:
    assert rank_keys("ab", "abc") == []
    assert rank_keys("never seen", "") == []


@given(st.text("ab\n", max_size=80), st.text("ab\n", max_size=40))
def test_probabilities_are_those_of_the_obvious_count(before: str, after: str) -> None:
    ranked = rank_keys(before, after, most=99)
    assert sum(probability for _, probability in ranked) < 1
    seen = set()
    for text in (before, after):
        for end in range(SHORTEST_CONTEXT, len(text)):
            if len(before) >= SHORTEST_CONTEXT and text[end - SHORTEST_CONTEXT : end] == before[-SHORTEST_CONTEXT:]:
                seen.add(text[end])
    assert {key for key, _ in ranked} == seen
    assert LONGEST_CONTEXT > SHORTEST_CONTEXT


def test_a_new_line_is_indented_as_editors_do_it() -> None:
    assert indentation_after("    x = 1") == "    "
    assert indentation_after("def f():") == "    "
    assert indentation_after("\tif (x) {") == "\t\t"
    assert indentation_after("  a {") == "    "
    assert indentation_after("    ") == "    "
