"""Which files of a project are worth knowing: source text that its own rules do not ignore, within bounds.

Honours `.gitignore` files at every level, as git does: the rule nearest to a file decides, and nothing below an ignored
directory can come back. Symbolic links are not followed, so no tree is endless and nothing outside it is read. Knows
neither what is done with the files nor whose they are.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

SOURCE_NAME = re.compile(
    r"\.(bash|c|cc|cjs|cpp|cs|css|cxx|dart|exs?|go|graphql|hh?|hpp|hs|html|hxx|java|jl|jsx?|kts?|lua|mjs|mli?|php|p[lm]"
    r"|proto|pyi?|r|rb|rs|scala|scss|sh|sql|svelte|swift|toml|tsx?|vue|ya?ml|zig)$",
    re.IGNORECASE,
)
"""Of files that people write and complete; data and prose would crowd them out."""
MAX_FILE_BYTES = 256 * 1024
MAX_LINE_CHARS = 1000
"""Longer lines are no person's: minified, or data."""
MAX_FILES = 20_000
_NEVER = frozenset({".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", "venv"})
"""Directories that no project completes code in, ignored or not."""


class FoundFile(NamedTuple):
    """A file that may be read."""

    path: str
    """Within the tree, with forward slashes."""
    place: Path
    num_bytes: int
    mtime_ns: int


class _Rules:
    """The ignore rules that hold in one directory: its own, and those of the directories above it."""

    def __init__(self, levels: tuple[tuple[str, GitIgnoreSpec], ...] = ()) -> None:
        """`levels` are directories within the tree, "" or ending in a slash, the outermost first, with their rules."""
        self._levels = levels

    def below(self, prefix: str, directory: Path, left_out: Counter[str]) -> "_Rules":
        """Return the rules of a directory, with those of its own `.gitignore` where it has a readable one."""
        lines: list[str] = []
        names = (".gitignore",) if prefix else (".git/info/exclude", ".gitignore")
        for name in names:
            try:
                lines += (directory / name).read_text("utf-8", "replace").splitlines()
            except (FileNotFoundError, NotADirectoryError):  # `.git` is a file in a linked work tree
                continue
            except OSError:
                left_out["unreadable ignore file"] += 1
        try:
            return _Rules((*self._levels, (prefix, GitIgnoreSpec.from_lines(lines)))) if lines else self
        except ValueError:
            left_out["unreadable ignore file"] += 1
            return self

    def ignore(self, path: str) -> bool:
        """Tell whether a path within the tree, of a directory with a slash at its end, is ignored."""
        for prefix, spec in reversed(self._levels):
            decided = spec.check_file(path.removeprefix(prefix)).include
            if decided is not None:
                return decided
        return False


def find_files(root: Path, left_out: Counter[str]) -> Iterator[FoundFile]:
    """Yield the files of a tree, sorted by path, and count in `left_out` why others are not among them.

    Raises OSError when the root itself cannot be read.
    """
    num_found = 0
    for found in _walk(root, "", _Rules(), left_out):
        if num_found == MAX_FILES:
            left_out[f"beyond the first {MAX_FILES:,} files"] += 1
            continue
        num_found += 1
        yield found


def read_source(found: FoundFile, left_out: Counter[str]) -> str | None:
    """Return a file's text; None, counted in `left_out`, for what is no source text or cannot be read."""
    try:
        text = found.place.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        left_out["not UTF-8"] += 1
        return None
    except OSError:
        left_out["unreadable"] += 1
        return None
    if "\0" in text:
        left_out["not UTF-8"] += 1
        return None
    if max(map(len, text.splitlines()), default=0) > MAX_LINE_CHARS:
        left_out["long lines"] += 1
        return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _walk(directory: Path, prefix: str, above: _Rules, left_out: Counter[str]) -> Iterator[FoundFile]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        if not prefix:
            raise
        left_out["unreadable directory"] += 1
        return
    rules = above.below(prefix, directory, left_out)
    for entry in entries:
        try:
            path = prefix + entry.name
            path.encode()
        except UnicodeEncodeError:
            left_out["name is not UTF-8"] += 1
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _NEVER and not rules.ignore(path + "/"):
                yield from _walk(Path(entry.path), path + "/", rules, left_out)
        elif entry.is_file(follow_symlinks=False) and SOURCE_NAME.search(entry.name):
            if rules.ignore(path):
                left_out["ignored"] += 1
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                left_out["unreadable"] += 1
                continue
            if status.st_size > MAX_FILE_BYTES:
                left_out["too large"] += 1
            else:
                yield FoundFile(path, Path(entry.path), status.st_size, status.st_mtime_ns)
