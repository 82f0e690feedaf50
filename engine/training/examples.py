"""Examples: fill-in-the-middle and plain text, cut from documents and packed into rows.

The layout is the one that serving sends: `PRE {SEP path text}* {SEP path} above SUF after MID current hole END`, where
`current` is the text from the cut, a line start, to the cursor. Each part is tokenised on its own, as serving does.
A row is a function of the seed and its index alone, so a run taken up again reads exactly what it would have read.

Knows no model and no device.
"""

from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from engine.training.config import ExamplesConfig
from engine.training.corpus import Document
from engine.training.errors import CorpusError
from engine.training.manifest import Split
from engine.training.vocabulary import END, FILE, MIDDLE, PAD, PREFIX, SUFFIX

UNLEARNED, TEXT, HOLE = 0, 1, 2
"""Kinds of tokens: not learned (padding, an end that is none, a newline between cut and cursor), learned, and learned
within a hole, end included."""

_CHARS_PER_TOKEN = 5
"""Generous: windows are cut in characters first, so that far text is never tokenised."""
_MIN_ROOM = 48
"""Tokens below which a row is padded instead of squeezing in one more example."""


class Hole(NamedTuple):
    """Where text is taken out of a document, in characters: `cut <= start <= end`, the cut a line start."""

    cut: int
    start: int
    end: int


class Example(NamedTuple):
    """One example in tokens, each with its kind."""

    tokens: list[int]
    kinds: list[int]


class Row(NamedTuple):
    """Examples back to back: `tokens [T + 1]` and the kind of each, so that targets are the tokens one further on."""

    tokens: np.ndarray
    kinds: np.ndarray


def choose_hole(text: str, config: ExamplesConfig, rng: np.random.Generator) -> Hole:
    """Choose a hole as completions find them: the rest of a line, a few lines, or any span; and a cut above it."""
    anchor = int(rng.integers(len(text)))
    line_start = text.rfind("\n", 0, anchor) + 1
    line_end = _line_end(text, anchor)
    kind = rng.random()
    if kind < config.line_share + config.block_share:
        start = _choose_column(text, line_start, line_end, rng)
        end = line_end
        if kind >= config.line_share:
            for _ in range(int(rng.integers(1, 5))):
                end = _line_end(text, min(end + 1, len(text)))
        if rng.random() < 0.15 and end < len(text):
            end += 1  # whole lines, newline included, as editors that insert lines ask for them
    else:
        start = anchor
        end = min(len(text), start + int(rng.integers(1, config.max_span_chars + 1)))
    return Hole(_choose_cut(text, start, rng), start, end)


def _choose_column(text: str, line_start: int, line_end: int, rng: np.random.Generator) -> int:
    indented = line_start
    while indented < line_end and text[indented] in " \t":
        indented += 1
    place = rng.random()
    if place < 0.08:
        return line_start
    if place < 0.30:
        return indented
    return int(rng.integers(indented, line_end + 1))


def _choose_cut(text: str, start: int, rng: np.random.Generator) -> int:
    # Mostly the cursor's line, as serving asks: there the text above stands far from the hole, which has to be learned.
    place = rng.random()
    lines_up = 0 if place < 0.65 else int(rng.integers(1, 9)) if place < 0.9 else int(rng.integers(9, 60))
    cut = text.rfind("\n", 0, start) + 1
    for _ in range(lines_up):
        if cut == 0:
            break
        cut = text.rfind("\n", 0, cut - 1) + 1
    return cut


def _line_end(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end


class ExampleMaker:
    """Makes examples and rows of one split of the corpus."""

    def __init__(
        self, documents: list[Document], tokenizer: Tokenizer, config: ExamplesConfig, *, split: Split, seed: int
    ) -> None:
        self.documents = [document for document in documents if document.split == split]
        if not self.documents:
            raise CorpusError(f"the corpus has no {split} documents; expected at least one; check the manifest")
        self._tokenizer = tokenizer
        self.config = config
        self._seed = seed
        self._split = split
        # Very long files are drawn less often than their length asks: they tend to be tables.
        weights = np.array([min(len(document.text), 60_000) for document in self.documents], np.float64)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._line_ends = self.line_end_tokens()
        self._siblings: dict[str, list[int]] = {}
        for index, document in enumerate(self.documents):
            self._siblings.setdefault(document.project, []).append(index)

    def row(self, index: int, length: int) -> Row:
        """Return row `index` of `length + 1` tokens, the same on every call."""
        rng = np.random.default_rng([self._seed, self._split == "train", length, index])
        tokens = np.full(length + 1, PAD, np.int32)
        kinds = np.full(length + 1, UNLEARNED, np.int8)
        used = 0
        while (room := length + 1 - used) >= _MIN_ROOM:
            # Sizes are drawn evenly in their logarithm: short prompts are as common in use as long ones.
            size = int(np.exp(rng.uniform(np.log(min(96, length)), np.log(1.3 * length))))
            example = self.example(min(size, room), rng)
            count = len(example.tokens)
            tokens[used : used + count] = example.tokens
            kinds[used : used + count] = example.kinds
            used += count
        return Row(tokens, kinds)

    def example(self, budget: int, rng: np.random.Generator) -> Example:
        """Return an example of at most `budget` tokens from a document drawn by length."""
        index = min(int(np.searchsorted(self._cumulative, rng.random())), len(self.documents) - 1)
        document = self.documents[index]
        if rng.random() < self.config.plain_share:
            return self._plain(document, budget, rng)
        for _ in range(4):
            hole = choose_hole(document.text, self.config, rng)
            if example := self.fill_in_the_middle(index, hole, budget, rng):
                return example
        return self._plain(document, budget, rng)

    def encode(self, text: str) -> list[int]:
        """Tokenise a part on its own."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def line_end_tokens(self) -> frozenset[int]:
        """Return the tokens that end a line: the end marker, and all that begin with a newline."""
        texts = self._tokenizer.decode_batch([[token_id] for token_id in range(self._tokenizer.get_vocab_size())])
        return frozenset([END, *(token_id for token_id, text in enumerate(texts) if text.startswith("\n"))])

    def _plain(self, document: Document, budget: int, rng: np.random.Generator) -> Example:
        tokens = self._header(document, rng) if budget > 100 else []
        room = budget - len(tokens) - 1
        start = document.text.rfind("\n", 0, int(rng.integers(len(document.text)))) + 1
        window = document.text[start : start + room * _CHARS_PER_TOKEN]
        ids = self.encode(window)
        reaches_end = len(ids) <= room and start + len(window) == len(document.text)
        tokens = [*tokens, *ids[:room], END]
        kinds = [TEXT] * len(tokens)
        if not reaches_end:
            kinds[-1] = UNLEARNED  # the window ends here, not the text
        kinds[0] = UNLEARNED
        return Example(tokens, kinds)

    def fill_in_the_middle(self, index: int, hole: Hole, budget: int, rng: np.random.Generator) -> Example | None:
        """Return an example of at most `budget` tokens, or None when the hole leaves no room for what is around it."""
        document = self.documents[index]
        current, filling = document.text[hole.cut : hole.start], document.text[hole.start : hole.end]
        if len(current) + len(filling) > budget * _CHARS_PER_TOKEN:
            return None
        middle, num_current = self._middle(current, filling, rng)
        room = budget - len(middle) - 4
        if room < budget // 3:
            return None
        header = self._header(document, rng)
        if len(header) > room // 4:
            header = []
        room -= len(header)
        # Without a header of its own the text above would read as the end of the last chunk.
        context = self._context(index, int(room * rng.uniform(0.1, 0.5)), rng) if header else []
        room -= len(context)
        # Mostly more above than after; what one side does not use, the other may.
        room_after = int(room * rng.uniform(0.1, 0.5))
        after_text = document.text[hole.end : hole.end + room * _CHARS_PER_TOKEN]
        above_text = document.text[max(0, hole.cut - room * _CHARS_PER_TOKEN) : hole.cut]
        above = self.encode(above_text)
        after = self.encode(after_text)[: max(room_after, room - len(above))]
        room_above = room - len(after)
        above = above[-room_above:] if room_above else []
        tokens = [PREFIX, *context, *header, *above, SUFFIX, *after, MIDDLE, *middle, END]
        kinds = [TEXT] * len(tokens)
        kinds[0] = UNLEARNED
        start = len(tokens) - len(middle) - 1
        # Nothing marks the cursor: a line end above it looks like one in the hole. Were it learned that a newline
        # follows there, which it nearly always does, the end marker would hardly ever be the likeliest.
        for place in range(start, start + num_current):
            if tokens[place] in self._line_ends:
                kinds[place] = UNLEARNED
        kinds[start + num_current :] = [HOLE] * (len(middle) - num_current + 1)
        return Example(tokens, kinds)

    def _middle(self, current: str, filling: str, rng: np.random.Generator) -> tuple[list[int], int]:
        """Return the tokens of current and hole, and how many of them come wholly before the cursor.

        Serving drops the last token before the cursor and lets the model write it again, within the bytes it stood
        for. Where the cursor lies inside a token of the whole text, most examples therefore show that whole token.
        """
        encoding = self._tokenizer.encode(current + filling, add_special_tokens=False)
        ends = [end for _, end in encoding.offsets]
        num_current = int(np.searchsorted(ends, len(current), side="right"))
        is_boundary = not current or (num_current > 0 and ends[num_current - 1] == len(current))
        if (is_boundary and encoding.ids) or rng.random() < self.config.joint_share:
            return list(encoding.ids), num_current
        before = self.encode(current)
        return before + self.encode(filling), len(before)

    def _header(self, document: Document, rng: np.random.Generator) -> list[int]:
        if rng.random() >= self.config.path_share:
            return []
        return [FILE, *self.encode(document.path + "\n")]

    def _context(self, index: int, room: int, rng: np.random.Generator) -> list[int]:
        """Return one to three chunks of other files of the project, ten to forty lines each."""
        siblings = self._siblings[self.documents[index].project]
        if rng.random() >= self.config.context_share or len(siblings) < 2:
            return []
        tokens: list[int] = []
        for _ in range(int(rng.integers(1, 4))):
            other = siblings[int(rng.integers(len(siblings)))]
            if other == index:
                continue
            document = self.documents[other]
            start = document.text.rfind("\n", 0, int(rng.integers(len(document.text)))) + 1
            lines = document.text[start : start + 4000].split("\n")[: int(rng.integers(10, 41))]
            chunk: list[int] = [FILE, *self.encode(document.path + "\n")]
            for size in (len(lines), 10, 5):
                ids = self.encode("\n".join(lines[:size]).rstrip("\n") + "\n")
                if len(tokens) + len(chunk) + len(ids) <= room:
                    tokens += chunk + ids
                    break
        return tokens
