import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.shapes import ShapeFamily, buckets

FAMILY = ShapeFamily(row_buckets=(1, 2, 4, 6), width_buckets=(1, 8, 16), chunk_buckets=(32, 64, 100))


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(1, 16, (1, 2, 4, 8, 16)), (1, 6, (1, 2, 4, 6)), (32, 100, (32, 64, 100)), (32, 16, (16,))],
)
def test_buckets_are_powers_of_two_up_to_the_last(first: int, last: int, expected: tuple[int, ...]) -> None:
    assert buckets(first, last) == expected


@given(st.integers(1, 6), st.integers(1, 16), st.integers(1, 500))
def test_every_shape_that_can_be_asked_for_is_in_the_family_and_large_enough(rows: int, width: int, chunk: int) -> None:
    asked = [FAMILY.for_rows(rows, width), FAMILY.for_chunk(chunk), FAMILY.for_chunk(chunk, num_rows=rows)]
    assert set(asked) <= set(FAMILY.shapes())
    wide, alone, mixed = asked
    assert wide.rows >= rows
    assert wide.width >= width
    assert min(alone.chunk, mixed.chunk) >= min(chunk, 100)
    assert mixed.rows >= rows


def test_no_shape_is_compiled_twice() -> None:
    shapes = FAMILY.shapes()
    assert len(shapes) == len(set(shapes))
