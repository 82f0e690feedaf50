"""Places in code that is installed here."""

from loadtest.benchmarks.code_places import common_chars, gather_places


def test_places_are_cursors_in_real_code_of_different_files() -> None:
    entries, queries = gather_places(60, 40)
    assert (len(entries), len(queries)) == (60, 40)
    for place in entries + queries:
        assert len(place.rest_of_line.strip()) >= 3
        assert len(place.before) <= 512
    assert gather_places(60, 40) == [entries, queries], "the same places every time"
    assert gather_places(60, 40, seed=1) != [entries, queries]


def test_how_far_texts_begin_alike() -> None:
    assert [common_chars("abc", other) for other in ("", "abd", "abcd", "x")] == [0, 2, 3, 0]
