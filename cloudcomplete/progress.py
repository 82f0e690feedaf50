"""A line that says how far something is: rewritten in place on a terminal, elsewhere line after line or not at all."""

import shutil
import threading
from typing import TextIO


class Progress:
    """Shows one step at a time; may be called from several threads, and is silent after `end`."""

    def __init__(self, out: TextIO, *, has_plain_lines: bool) -> None:
        """`has_plain_lines` keeps every step as a line where `out` is no terminal."""
        self._out = out
        self._is_terminal = out.isatty()
        self._has_plain_lines = has_plain_lines
        self._lock = threading.Lock()
        self._is_ended = False

    def show(self, text: str) -> None:
        """Show the current step."""
        with self._lock:
            if self._is_ended:
                return
            if self._is_terminal:
                width = shutil.get_terminal_size().columns - 1
                self._out.write(f"\r\x1b[K{text[:width]}")
            elif self._has_plain_lines:
                self._out.write(f"{text}\n")
            self._out.flush()

    def end(self) -> None:
        """Clear the line and show nothing more."""
        with self._lock:
            if self._is_terminal and not self._is_ended:
                self._out.write("\r\x1b[K")
                self._out.flush()
            self._is_ended = True
