"""A line that says how far something is: rewritten in place on a terminal, elsewhere line after line or not at all."""

import shutil
import threading
import time
from typing import Self, TextIO

_BAR_CELLS = 24
_REDRAW_S = 0.1
_PLAIN_LINE_S = 10.0
_SETTLE_S = 1.0


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


class ProgressBar:
    """Shows how much of a known amount of work is done, what is known so far and how long the rest may take.

    Elsewhere than on a terminal it is a line every ten seconds, so that a log of a long run shows that it lives.
    """

    def __init__(self, out: TextIO, *, total: int, unit: str) -> None:
        """`unit` is what is counted, such as "rows"."""
        self._progress = Progress(out, has_plain_lines=True)
        self._interval_s = _REDRAW_S if out.isatty() else _PLAIN_LINE_S
        self._total = total
        self._unit = unit
        self._began_s = time.monotonic()
        self._shown_s = self._began_s if not out.isatty() else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def show(self, num_done: int, facts: str = "") -> None:
        """Show the state of the work, unless it was shown a moment ago."""
        now_s = time.monotonic()
        if now_s - self._shown_s < self._interval_s:
            return
        self._shown_s = now_s
        share = num_done / self._total if self._total else 1.0
        cells = int(share * _BAR_CELLS)
        text = f"[{'#' * cells}{'.' * (_BAR_CELLS - cells)}] {num_done:,} of {self._total:,} {self._unit}"
        if facts:
            text += f", {facts}"
        elapsed_s = now_s - self._began_s
        if 0 < num_done < self._total and elapsed_s > _SETTLE_S:
            text += f", {_clock(elapsed_s / num_done * (self._total - num_done))} left"
        self._progress.show(text)

    def end(self) -> None:
        """Clear the line and show nothing more."""
        self._progress.end()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
