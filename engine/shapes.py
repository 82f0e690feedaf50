"""The family of step shapes: what a step may look like, so that every program can be compiled ahead.

A step computes up to `rows` sequences of up to `width` tokens each (a decode has one token, one with a draft or the
tail of a prompt has more), and beside them up to `chunk` tokens of one long prompt. Sizes come in buckets, mostly
powers of two; what is smaller is padded. Knows no JAX.
"""

from typing import NamedTuple

import msgspec

MAX_SCORED = 8
"""Most tokens of a row whose successor is chosen in one step: a draft of 7 and the token before it."""


class Shape(NamedTuple):
    """One program: `rows` x `width` tokens, and a chunk of `chunk` tokens of one more sequence; either may be 0."""

    rows: int
    width: int
    chunk: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.width + self.chunk

    @property
    def num_sequences(self) -> int:
        return self.rows + (self.chunk > 0)

    @property
    def num_scored(self) -> int:
        """How many of a row's last tokens get a successor."""
        return min(self.width, MAX_SCORED)


class ShapeFamily(msgspec.Struct, frozen=True, kw_only=True):
    """Every shape of one engine."""

    row_buckets: tuple[int, ...]
    """Numbers of rows, ascending."""
    width_buckets: tuple[int, ...]
    """Tokens per row, ascending, the first one 1."""
    chunk_buckets: tuple[int, ...]
    """Tokens of a long prompt computed in one step, ascending."""

    @property
    def wide_row_buckets(self) -> tuple[int, ...]:
        """Numbers of rows of more than one token, or beside a chunk: fewer, since each costs a program to compile."""
        return tuple(rows for rows in self.row_buckets if rows in (1, 4, self.row_buckets[-1]))

    @property
    def mixed_chunk_buckets(self) -> tuple[int, ...]:
        """Chunks beside rows: a small one that hardly delays them, and the largest."""
        return tuple(sorted({self.chunk_buckets[len(self.chunk_buckets) // 4], self.chunk_buckets[-1]}))

    def shapes(self) -> list[Shape]:
        """Return all shapes."""
        decode = [Shape(rows, 1, 0) for rows in self.row_buckets]
        wide = [Shape(rows, width, 0) for width in self.width_buckets[1:] for rows in self.wide_row_buckets]
        chunks = [Shape(0, 0, chunk) for chunk in self.chunk_buckets]
        mixed = [Shape(rows, 1, chunk) for rows in self.wide_row_buckets for chunk in self.mixed_chunk_buckets]
        return decode + wide + chunks + mixed

    def for_rows(self, num_rows: int, width: int) -> Shape:
        """Return the smallest shape for so many rows of at most `width` tokens."""
        rows = self.row_buckets if width == 1 else self.wide_row_buckets
        return Shape(_at_least(rows, num_rows), _at_least(self.width_buckets, width), 0)

    def for_chunk(self, num_tokens: int, *, num_rows: int = 0) -> Shape:
        """Return the smallest shape for so many tokens of a prompt, beside `num_rows` rows of one token."""
        sizes = self.mixed_chunk_buckets if num_rows else self.chunk_buckets
        chunk = _at_least(sizes, min(num_tokens, sizes[-1]))
        return Shape(_at_least(self.wide_row_buckets, num_rows), 1, chunk) if num_rows else Shape(0, 0, chunk)


def buckets(first: int, last: int) -> tuple[int, ...]:
    """Return powers of two from `first`, the last one clipped to `last`."""
    sizes = [min(first, last)]
    while sizes[-1] < last:
        sizes.append(min(sizes[-1] * 2, last))
    return tuple(sizes)


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)
