"""The demo (`make demo`): a server on the starter model completes places of real files, and shows what that cost.

At each place it first asks once, then types a few characters of what the file really has there and asks again, as an
editor would: the second prompt is almost all reused. Starts its own server and stops it.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from cloudcomplete.errors import CommandError, SourceFileError
from cloudcomplete.own_server import OwnServer
from cloudcomplete.progress import Progress
from cloudcomplete.source_file import SourceFile
from engine.types import Usage
from server import prompt
from server.client import Client
from server.errors import ServerError

MAX_TOKENS = 24
LINES_ABOVE = 5
LINES_BELOW = 2
SAMPLES = Path(__file__).parent.parent / "loadtest" / "samples"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A hole in a file: what stands between two texts is taken out, and the cursor is put there."""

    path: Path
    above: str
    """Text right before the hole; occurs once in the file."""
    below: str
    """Text right after the hole: its first occurrence behind `above`."""
    num_typed_chars: int
    """Characters of the hole typed before the second question."""


PLACES = (
    Place(
        path=Path(prompt.__file__),
        above="    extension = EXTENSIONS.get(language.lower())\n    return ",
        below="\n\n\ndef _window_start",
        num_typed_chars=8,
    ),
    Place(
        path=Path(prompt.__file__),
        above="    before = before[_window_start(before, config) :]\n    after = ",
        below="\n    return Window(",
        num_typed_chars=6,
    ),
    Place(
        path=SAMPLES / "cart.ts",
        above="  remove(name: string): boolean {\n    ",
        below="\n  }\n\n  subtotalCents",
        num_typed_chars=14,
    ),
    Place(
        path=SAMPLES / "cart.ts",
        above="  isEmpty(): boolean {\n    return ",
        below="\n  }\n}",
        num_typed_chars=5,
    ),
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One completion and its measures, as a client sees them."""

    title: str
    text: str
    first_text_s: float
    """Seconds from the question to the first text; to the end when there was none."""
    total_s: float
    usage: Usage

    @property
    def tokens_per_s(self) -> float:
        """Rate after the first token; 0 when there was only one."""
        decode_s = self.usage.total_s - self.usage.first_token_s
        return (self.usage.num_generated_tokens - 1) / decode_s if self.usage.num_generated_tokens > 1 else 0.0


class Screen:
    """Writes text in colours on a terminal, and with brackets around what the model wrote elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()

    def write(self, text: str, style: str = "") -> None:
        """Write without a line break; `style` is an ANSI code such as "2" (dim)."""
        self._out.write(f"\x1b[{style}m{text}\x1b[0m" if style and text and self._is_terminal else text)
        self._out.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line."""
        self.write(text, style)
        self.write("\n")

    def open_answer(self) -> None:
        """Mark where the model's text begins, where colours cannot."""
        self.write("" if self._is_terminal else "«")

    def close_answer(self) -> None:
        """Mark where the model's text ends, where colours cannot."""
        self.write("" if self._is_terminal else "»")


def find_hole(place: Place) -> tuple[SourceFile, str, str, str]:
    """Return the file of a place, the text before its hole, the hole and the text after; raises SourceFileError."""
    file = SourceFile.read(place.path)
    if file.text.count(place.above) != 1:
        raise SourceFileError(
            f"{file.path} has {file.text.count(place.above)} places {place.above!r}; expected 1; correct PLACES"
        )
    start = file.text.index(place.above) + len(place.above)
    end = file.text.find(place.below, start)
    if end < 0:
        raise SourceFileError(f"{file.path} has no {place.below!r} below the place; expected one; correct PLACES")
    return file, file.text[:start], file.text[start:end], file.text[end:]


def run(out: TextIO = sys.stdout, *, command: Sequence[str] | None = None) -> list[Answer]:
    """Show everything and return the measures; `command` starts the server, None: the starter model's."""
    screen = Screen(out)
    started_s = time.monotonic()
    screen.line("Starting a server on the starter model (the first start compiles its programs)", "1")
    answers: list[Answer] = []
    progress = Progress(out, has_plain_lines=True)
    with OwnServer(command, on_progress=lambda line: progress.show(f"  {line}")) as server:
        progress.end()
        screen.line(f"  serving at {server.address} after {time.monotonic() - started_s:.1f} s, process {server.pid}")
        with Client(server.address, timeout_s=60) as client:
            for place in PLACES:
                answers += _show_place(screen, client, place)
        pid = server.pid
    screen.line()
    _show_summary(screen, answers)
    screen.line(f"\nServer {pid} stopped. {time.monotonic() - started_s:.1f} s in all.", "1")
    return answers


def main() -> None:
    """Run the demo; errors become one line and exit code 1."""
    try:
        run()
    except (CommandError, ServerError) as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _show_place(screen: Screen, client: Client, place: Place) -> list[Answer]:
    file, before, hole, after = find_hole(place)
    line = before.count("\n") + 1
    column = len(before) - before.rfind("\n") - 1
    where = f"{file.path}:{line}:{column}"
    screen.line(f"\n{where}", "1")
    first = _show_answer(screen, client, file, before, after, where)
    typed = hole[: place.num_typed_chars]
    screen.line(f"\n{where} after typing {typed!r}", "1")
    second = _show_answer(screen, client, file, before + typed, after, f"  + {len(typed)} characters")
    return [first, second]


def _show_answer(screen: Screen, client: Client, file: SourceFile, before: str, after: str, title: str) -> Answer:
    screen.write("\n".join(before.split("\n")[-LINES_ABOVE - 1 :]), "2")
    screen.open_answer()
    asked_s = time.monotonic()
    first_text_s = 0.0
    with client.stream(before, after, path=file.path, max_tokens=MAX_TOKENS, stop=["\n"]) as stream:
        for text in stream:
            first_text_s = first_text_s or time.monotonic() - asked_s
            screen.write(text, "1;32")
    total_s = time.monotonic() - asked_s
    screen.close_answer()
    screen.line("\n".join(after.split("\n")[: LINES_BELOW + 1]), "2")
    assert stream.completion is not None, "read to its end"
    answer = Answer(
        title=title,
        text=stream.completion.text,
        first_text_s=first_text_s or total_s,
        total_s=total_s,
        usage=stream.completion.usage,
    )
    usage = answer.usage
    screen.line(
        f"  first text after {answer.first_text_s * 1000:.0f} ms, {answer.tokens_per_s:.0f} tokens/s, "
        f"{usage.num_prompt_tokens} prompt tokens, {usage.num_reused_tokens} of them reused",
        "36",
    )
    return answer


def _show_summary(screen: Screen, answers: Sequence[Answer]) -> None:
    width = max(len(answer.title) for answer in answers)
    screen.line(
        f"{'place':<{width}}  {'first text':>10}  {'tokens/s':>8}  {'prompt':>7}  {'reused':>7}  {'written':>7}", "1"
    )
    for answer in answers:
        usage = answer.usage
        screen.line(
            f"{answer.title:<{width}}  {answer.first_text_s * 1000:>7.0f} ms  {answer.tokens_per_s:>8.0f}  "
            f"{usage.num_prompt_tokens:>7}  {usage.num_reused_tokens:>7}  {usage.num_generated_tokens:>7}"
        )


if __name__ == "__main__":
    main()
