"""The index of one project's text: which of its chunks are most like a place where somebody writes.

A chunk is a run of lines of one file, whose second half is the first half of the next one. It is like a query by the
words that both have, names and the parts of names, each weighed by how rare it is: the cosine of the two sets with
inverse document frequencies as weights. That words of the code around the cursor find as much as embeddings do is what
RepoCoder (Zhang et al., 2023) reports.

Knows neither files nor tenants nor prompts. Does not change once it is made, so any thread may ask it.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

CHUNK_LINES = 16
STEP_LINES = 8
"""A chunk begins every so many lines."""
_WORD = re.compile(r"[A-Za-z_]\w+")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]{2,}(?![a-z])|\d{2,}")
_COMMON_SHARE = 0.2
"""Words that stand in more of the chunks than this say nothing about any of them."""
_FEW_CHUNKS = 50
"""With fewer chunks than this, none of their words counts as common."""


class Found(NamedTuple):
    """A chunk, and how like the query it is."""

    path: str
    first_line: int
    """From 0."""
    text: str
    """Whole lines, newline at its end."""
    score: float
    """0 to 1."""


class RepositoryIndex:
    """The chunks of some files, searchable by their words."""

    def __init__(self, files: Iterable[tuple[str, str]]) -> None:
        """Cut files, each a path and its text, into chunks."""
        self._texts: list[str] = []
        self._paths: list[str] = []
        self._chunks: list[tuple[int, int, int, int]] = []
        """File, first line, start and end in its text."""
        vocabulary: dict[str, int] = {}
        words_of: list[np.ndarray] = []
        for number, (path, text) in enumerate(files):
            self._paths.append(path)
            self._texts.append(text)
            for first_line, start, end, words in _cut(text):
                self._chunks.append((number, first_line, start, end))
                ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words]
                words_of.append(np.fromiter(ids, np.int32, len(ids)))
        self._vocabulary = vocabulary
        self._fill(words_of)
        self.paths = frozenset(self._paths)
        self.num_bytes = sum(map(len, self._texts)) + self._postings.nbytes
        """About the memory that it takes."""

    @property
    def num_chunks(self) -> int:
        """Chunks that can be found."""
        return len(self._chunks)

    def search(
        self, query: str, *, max_chars: int, min_score: float = 0.0, excluded: Collection[str] = ()
    ) -> list[Found]:
        """Return the chunks most like `query`, the best first, of at most `max_chars` together.

        No two of them overlap or are the same text, none is of a path that is `excluded`.
        """
        scores = self._scores(query)
        candidates = np.flatnonzero(scores > max(min_score, 1e-6))
        order = candidates[np.argsort(-scores[candidates], kind="stable")]
        taken: dict[int, list[int]] = {}
        texts: set[str] = set()
        found: list[Found] = []
        for chunk in order.tolist():
            number, first_line, start, end = self._chunks[chunk]
            path = self._paths[number]
            if path in excluded or end - start > max_chars:
                continue
            if any(abs(first_line - other) < CHUNK_LINES for other in taken.get(number, ())):
                continue
            text = self._texts[number][start:end]
            if text in texts:
                continue
            texts.add(text)
            taken.setdefault(number, []).append(first_line)
            found.append(Found(path, first_line, text if text.endswith("\n") else text + "\n", float(scores[chunk])))
            max_chars -= end - start
            if max_chars < STEP_LINES:
                break
        return found

    def _fill(self, words_of: list[np.ndarray]) -> None:
        """Turn the words of each chunk into the chunks of each word."""
        lengths = np.array([len(words) for words in words_of], np.int64)
        words = np.concatenate(words_of) if words_of else np.empty(0, np.int32)
        chunks = np.repeat(np.arange(len(words_of), dtype=np.int32), lengths)
        counts = np.bincount(words, minlength=len(self._vocabulary))
        self._weights = np.log((1 + len(words_of)) / np.maximum(counts, 1)).astype(np.float32)
        if len(words_of) >= _FEW_CHUNKS:
            self._weights[counts > _COMMON_SHARE * len(words_of)] = 0.0
        self._postings: np.ndarray = chunks[np.argsort(words, kind="stable")]
        self._edges = np.concatenate([[0], np.cumsum(counts)])
        squares = np.bincount(chunks, self._weights[words] ** 2, minlength=len(words_of))
        self._norms = np.sqrt(np.maximum(squares, 1e-9))

    def _scores(self, query: str) -> np.ndarray:
        """Return the likeness of each chunk, `[num_chunks]` float."""
        known = [self._vocabulary[word] for word in sorted(words_in(query)) if word in self._vocabulary]
        scores = np.zeros(self.num_chunks)
        weights = self._weights[known]
        for word, weight in zip(known, weights.tolist(), strict=True):
            if weight > 0:
                scores[self._postings[self._edges[word] : self._edges[word + 1]]] += weight * weight
        norm = float(np.sqrt(np.square(weights).sum()))
        return scores / (self._norms * norm) if norm > 0 else scores


def words_in(text: str) -> set[str]:
    """Return the names in a text and the parts that they are made of, in lower case."""
    words: set[str] = set()
    for name in set(_WORD.findall(text)):
        words.add(name.lower())
        words.update(part.lower() for part in _PART.findall(name))
    return words


def _cut(text: str) -> Iterator[tuple[int, int, int, set[str]]]:
    """Yield each chunk's first line, start, end and words."""
    steps: list[tuple[int, int, set[str]]] = []
    lines = text.splitlines(keepends=True) if text else []
    start = 0
    for first_line in range(0, len(lines), STEP_LINES):
        step = "".join(lines[first_line : first_line + STEP_LINES])
        steps.append((start, start + len(step), words_in(step)))
        start += len(step)
    num_steps = CHUNK_LINES // STEP_LINES
    for number in range(max(1, len(steps) - num_steps + 1) if steps else 0):
        parts = steps[number : number + num_steps]
        words = set[str]().union(*(part[2] for part in parts))
        if words:
            yield number * STEP_LINES, parts[0][0], parts[-1][1], words
