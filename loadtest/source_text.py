"""Real source text to ask about: Python files that every machine has, the standard library's."""

import random
import sysconfig
from functools import cache
from pathlib import Path
from typing import NamedTuple

CHARS_PER_TOKEN = 3.2
"""Of such text in vocabularies of code models, about."""
_FILE_BYTES = range(8_000, 200_000)
_SHARE_BEFORE = 0.75


class Place(NamedTuple):
    """A cursor in a file."""

    before: str
    after: str
    path: str


def choose_place(number: int, *, num_tokens: int, seed: int = 0) -> Place:
    """Return a place with about `num_tokens` tokens around it, three quarters of them left of the cursor.

    The same arguments give the same place of the same files. Where a file is shorter, others stand above it, as an
    editor's other open files would.
    """
    draw = random.Random(f"source-text/{seed}/{number}")
    files = _files()
    chosen = draw.randrange(len(files))
    text = _read(files[chosen])
    cursor = draw.randrange(len(text) // 4, len(text))
    num_chars = round(num_tokens * CHARS_PER_TOKEN)
    after = text[cursor : cursor + round(num_chars * (1 - _SHARE_BEFORE))]
    before = text[:cursor]
    missing = num_chars - len(after)
    while len(before) < missing:
        chosen = (chosen + 1) % len(files)
        before = f"{_read(files[chosen])}\n{before}"
    return Place(before[len(before) - missing :] if missing > 0 else "", after, files[chosen].name)


@cache
def _files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.glob("*.py") if path.stat().st_size in _FILE_BYTES)


@cache
def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace")
