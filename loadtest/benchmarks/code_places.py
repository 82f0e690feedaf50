"""Places in real code: what stands before a cursor, and what the programmer wrote after it.

Taken from the Python files that are installed beside this program, the standard library and its packages, so that a
benchmark needs no data of its own. Entries and queries never come from the same file, and files that are copies of
each other count once.
"""

import hashlib
import random
import re
import sysconfig
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import msgspec

CONTEXT_CHARS = 512
CONTINUATION_CHARS = 256
_WORD_STARTS = re.compile(r"(?<!\w)\w|(?<=\s)\S|[(\[{.]")
_FEWEST_CHARS = 3
_MOST_PER_FILE = 40
_MOST_FILE_BYTES = 1 << 19


class Place(msgspec.Struct, frozen=True):
    """A cursor in real code."""

    before: str
    """The last `CONTEXT_CHARS` characters left of the cursor."""
    continuation: str
    """What was written there: the rest of the line, and of what follows up to `CONTINUATION_CHARS`."""

    @property
    def rest_of_line(self) -> str:
        return self.continuation.partition("\n")[0]


def gather_places(*counts: int, seed: int = 0) -> list[list[Place]]:
    """Return as many lists of so many places, each of files of its own; shorter ones where there is too little code."""
    chooser = random.Random(seed)
    files = _files()
    chooser.shuffle(files)
    gathered = [list[Place]() for _ in counts]
    seen = set[bytes]()
    for path in files:
        missing = [1 - len(places) / count for places, count in zip(gathered, counts, strict=True)]
        if max(missing) <= 0:
            break
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest not in seen and len(content) <= _MOST_FILE_BYTES:
            seen.add(digest)
            gathered[missing.index(max(missing))].extend(_places(content.decode("utf-8", "replace"), chooser))
    return [places[:count] for places, count in zip(gathered, counts, strict=True)]


def common_chars(left: str, right: str) -> int:
    """Return with how many characters two texts begin alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _files() -> list[Path]:
    roots = sorted({Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})
    return sorted({path for root in roots for path in root.rglob("*.py") if path.is_file()})


def _places(text: str, chooser: random.Random) -> Iterator[Place]:
    """Yield cursors of one file: random lines, each at the start of a random word."""
    starts = [match.start() + 1 for match in re.finditer(r"\n(?=[^\n])", text)]
    for start in chooser.sample(starts, min(_MOST_PER_FILE, len(starts))):
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)]
        words = [match.start() for match in _WORD_STARTS.finditer(line)]
        if not words:
            continue
        cursor = start + chooser.choice(words)
        if len(text[cursor : start + len(line)].strip()) >= _FEWEST_CHARS:
            yield Place(text[max(0, cursor - CONTEXT_CHARS) : cursor], text[cursor : cursor + CONTINUATION_CHARS])
