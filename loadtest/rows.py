"""Rows to evaluate: a JSON Lines file, plain or gzipped, of holes in source text and what really stood in them.

    {"prompt": "def add(a, b):\\n", "suffix": "\\n", "canonical_solution": "    return a + b", "language": "python"}

A line that cannot be used is kept as a `Skipped` with its reason, never dropped. Knows no server and no scores.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from loadtest.errors import RowsError

_GZIP = b"\x1f\x8b"
_DAMAGED = "the gzip data is damaged or cut short; rows may be missing or wrong"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RowContext(msgspec.Struct, frozen=True, kw_only=True):
    """Text of another file of the row's project."""

    path: str
    text: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One hole. Other fields of the file's objects, such as tests, are ignored."""

    prompt: str
    """Text before the hole."""
    suffix: str
    """Text after the hole."""
    canonical_solution: str
    """What stood in the hole."""
    language: str | None = None
    """Name of the programming language; figures are given by language where rows name one."""
    path: str | None = None
    """Path of the file in its project."""
    context: tuple[RowContext, ...] | None = None
    """Other places of the project, the most useful last."""
    task_id: str | int | None = None
    """The row's name in its data set."""
    line: int = 0
    """Line of the file, counted from 1; not read from the file."""


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A line that could not be used."""

    line: int
    reason: str


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds, in its order."""

    usable: tuple[Row, ...]
    skipped: tuple[Skipped, ...]


def read_rows(path: Path) -> Rows:
    """Read a file; raises RowsError when it cannot be opened or has no usable row."""
    usable: list[Row] = []
    skipped: list[Skipped] = []
    try:
        for number, line in _lines(path):
            if isinstance(line, Skipped):
                skipped.append(line)
            elif isinstance(parsed := _parse(number, line), Row):
                usable.append(parsed)
            else:
                skipped.append(parsed)
    except OSError as error:
        raise RowsError(f"cannot read the rows in {path}: {error.strerror}; expected a JSON Lines file") from None
    if not usable:
        found = f"line {skipped[0].line}: {skipped[0].reason}" if skipped else "it is empty"
        raise RowsError(
            f"{path} has no row that can be evaluated ({found}); "
            "expected JSON objects with prompt, suffix and canonical_solution, one a line"
        )
    return Rows(usable=tuple(usable), skipped=tuple(skipped))


def sample(rows: tuple[Row, ...], limit: int | None) -> tuple[Row, ...]:
    """Return `limit` rows in the order of the file, spread at random but always the same; None: all of them.

    Neighbours in a file are alike (one problem, one language), so its first rows stand for nothing else, and every
    n-th row falls in step with a file that alternates. Rows are ranked by a hash of their position: a smaller sample
    is a part of a larger one.
    """
    if limit is None or limit >= len(rows):
        return rows
    ranked = sorted(range(len(rows)), key=lambda index: hashlib.sha256(str(index).encode()).digest())
    return tuple(rows[index] for index in sorted(ranked[:limit]))


def group_by_reason(skipped: tuple[Skipped, ...]) -> dict[str, list[int]]:
    """Return the numbers of the lines of each reason."""
    lines: dict[str, list[int]] = {}
    for each in skipped:
        lines.setdefault(each.reason, []).append(each.line)
    return lines


def _lines(path: Path) -> Iterator[tuple[int, bytes | Skipped]]:
    """Yield the lines that are not blank with their numbers, and in the end what is wrong with the file itself."""
    number = 0
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP
        file.seek(0)
        source: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if is_gzip else file
        try:
            for line in source:
                number += 1
                if line.strip():
                    yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error):
            number += 1
            yield (
                number,
                Skipped(line=number, reason=_DAMAGED),
            )


def _parse(number: int, line: bytes) -> Row | Skipped:
    try:
        values: Any = msgspec.json.decode(line.removeprefix(_BYTE_ORDER_MARK))
    except (msgspec.DecodeError, RecursionError):
        return Skipped(line=number, reason="not JSON")
    if isinstance(values, dict):
        values["line"] = number
    try:
        row = msgspec.convert(values, Row)
    except msgspec.ValidationError as error:
        return Skipped(line=number, reason=str(error))
    if not row.canonical_solution.strip():
        return Skipped(line=number, reason="canonical_solution is blank")
    return row
