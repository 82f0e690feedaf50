"""A file to be completed, and a place in it: lines count from 1, columns from 0, as most editors show and store them.

A column counts characters (Unicode code points), so a tab is one. Line breaks stay as the file has them.
"""

from pathlib import Path
from typing import Self

import msgspec

from cloudcomplete.errors import SourceFileError


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one file."""

    path: str
    """As the model is told: relative to the working directory where the file is below it, else its name alone."""
    text: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file; raises SourceFileError when it is missing, not a file or not UTF-8."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SourceFileError(f"cannot read {path}: {error.strerror}; expected a text file") from None
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise SourceFileError(
                f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}; convert the file to UTF-8 first"
            ) from None
        whole, here = path.resolve(), Path.cwd().resolve()
        shown = whole.relative_to(here) if whole.is_relative_to(here) else Path(whole.name)
        return cls(path=shown.as_posix(), text=text)

    def split(self, line: int, column: int) -> tuple[str, str]:
        """Return the text left and right of a place; raises SourceFileError when the file has no such place."""
        lines = self.text.split("\n")
        if not 1 <= line <= len(lines):
            raise SourceFileError(
                f"line {line} is out of range: {self.path} has lines 1 to {len(lines)}; lines count from 1"
            )
        length = len(lines[line - 1].removesuffix("\r"))
        if not 0 <= column <= length:
            raise SourceFileError(
                f"column {column} is out of range: line {line} of {self.path} has columns 0 to {length}; "
                "columns count from 0"
            )
        at = sum(len(text) + 1 for text in lines[: line - 1]) + column
        return self.text[:at], self.text[at:]
