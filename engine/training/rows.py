"""Rows of held-out projects for `cloudcomplete evaluate`: holes that are the rest of a line, and what stood in them.

Two kinds of cursors: anywhere in a line, as the examples of training have them, and within an identifier, where token
healing matters. Every second row brings chunks of other files of its project. Rows are a function of corpus and seed
alone. Knows no model and no tokens.
"""

import gzip
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from engine.training.config import ExamplesConfig
from engine.training.corpus import Document, write_aside
from engine.training.errors import CorpusError
from engine.training.examples import choose_hole
from engine.types import ContextChunk

Cursor = Literal["line", "identifier"]

_IDENTIFIER = re.compile(r"[A-Za-z_]\w{3,}")
_SOLUTION_CHARS = range(3, 121)
_BEFORE_CHARS, _AFTER_CHARS = 12_000, 6_000
"""More than any prompt of the starter model holds."""
_MAX_WEIGHT_CHARS = 60_000
_TRIES = 30
_NUM_CHUNKS, _CHUNK_LINES = 3, 30


class HeldOutRow(msgspec.Struct, frozen=True, kw_only=True):
    """One hole; the fields are those that `cloudcomplete evaluate` reads."""

    task_id: str
    """Language, cursor and number; then the project."""
    prompt: str
    suffix: str
    canonical_solution: str
    language: str
    path: str
    context: tuple[ContextChunk, ...]


def make_rows(documents: list[Document], *, cursor: Cursor, per_language: int, seed: int) -> list[HeldOutRow]:
    """Return up to `per_language` rows of each language of the held-out split; raises CorpusError."""
    held_out = [document for document in documents if document.split == "held-out"]
    if not held_out:
        raise CorpusError("the corpus has no held-out documents; expected at least one; check the manifest")
    rows = []
    for language in sorted({document.language for document in held_out}):
        own = [document for document in held_out if document.language == language]
        weights = np.array([min(len(document.text), _MAX_WEIGHT_CHARS) for document in own], np.float64)
        rng = np.random.default_rng([seed, *language.encode(), *cursor.encode()])
        seen: set[tuple[str, tuple[int, int]]] = set()
        for _ in range(_TRIES * per_language):
            if len(seen) == per_language:
                break
            document = own[int(rng.choice(len(own), p=weights / weights.sum()))]
            place = _choose_place(document.text, cursor, rng)
            if place is None or (document.path, place) in seen:
                continue
            seen.add((document.path, place))
            siblings = [other for other in held_out if other.project == document.project and other is not document]
            context = _choose_context(siblings, rng) if len(seen) % 2 == 0 else ()
            task_id = f"{language}/{cursor}/{len(seen)} {document.project}"
            rows.append(_row(document, place, task_id=task_id, context=context))
    return rows


def write_rows(rows: list[HeldOutRow], path: Path) -> Counter[str]:
    """Write JSON Lines, gzipped when the name ends so, and return how many rows each language has."""
    content = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    write_aside(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return Counter(row.language for row in rows)


def _choose_place(text: str, cursor: Cursor, rng: np.random.Generator) -> tuple[int, int] | None:
    """Return where a hole begins and ends, or None when this try found none worth asking for."""
    only_lines = ExamplesConfig(line_share=1.0, block_share=0.0)
    hole = choose_hole(text, only_lines, rng)
    start, end = hole.start, hole.end
    if cursor == "identifier":
        line_start = text.rfind("\n", 0, start) + 1
        words = list(_IDENTIFIER.finditer(text, line_start, end))
        if not words:
            return None
        word = words[int(rng.integers(len(words)))]
        start = int(rng.integers(word.start() + 1, word.end()))
    solution = text[start:end]
    if solution.endswith("\n") or len(solution.strip()) not in _SOLUTION_CHARS:
        return None
    return start, end


def _choose_context(siblings: list[Document], rng: np.random.Generator) -> tuple[ContextChunk, ...]:
    chunks = []
    for index in rng.permutation(len(siblings))[:_NUM_CHUNKS]:
        lines = siblings[index].text.split("\n")
        start = int(rng.integers(max(1, len(lines) - _CHUNK_LINES)))
        text = "\n".join(lines[start : start + _CHUNK_LINES]) + "\n"
        chunks.append(ContextChunk(path=siblings[index].path, text=text))
    return tuple(chunks)


def _row(document: Document, place: tuple[int, int], *, task_id: str, context: tuple[ContextChunk, ...]) -> HeldOutRow:
    start, end = place
    first = document.text.find("\n", start - _BEFORE_CHARS) + 1 if start > _BEFORE_CHARS else 0
    return HeldOutRow(
        task_id=task_id,
        prompt=document.text[first:start],
        suffix=document.text[end : end + _AFTER_CHARS],
        canonical_solution=document.text[start:end],
        language=document.language,
        path=document.path,
        context=context,
    )
