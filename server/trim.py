"""Where a completion ends: decided character by character while the model writes, so that it can be stopped there.

    trimmer = Trimmer(before, after, path="a.py")
    shown, is_ended = trimmer.push("a + b\\n\\ndef")     # "a + b", True

A completion is a line where code stands around the cursor or a statement has begun, and a block where one has been
opened or the line is empty: up to the line that is indented less, or the bracket that closes the block; at the top of a
file, and where a definition was begun, up to its end. Whatever it is, it ends before a bracket that nothing opened,
before it would repeat the next line below, and when it goes round in circles. At its end it leaves out what stands
right of the cursor already, unless the cursor's line is empty left of it and nothing would be left; and trailing space.

Knows no transport and no engine. Invariants: the texts returned, joined, are a prefix of the text pushed; that prefix
does not depend on how the text was split; what was returned is never taken back.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from engine.types import Finish, Output, Request, Sink
from server.lexer import CLOSERS, OPENERS, Lexer, Rules, count_unmatched, rules_of
from server.types import TrimMode

_SCAN_CHARS = 8_192
"""Most characters left and right of the cursor that are searched for brackets."""
_STRIDE, _WINDOW, _LONGEST_PERIOD = 32, 128, 32
"""Every so many characters the last so many are looked at: are they the same few, over and over?"""
_MOST_EQUAL_LINES = 2
_CYCLE_LINES, _MOST_CYCLES = 8, 3
"""Up to so many different lines that come so many times in turn are a loop."""
_TAIL_CHARS = 128
_TAB = 8
_PREAMBLES = ("@", "#", "//", "/*", "*", "--")
"""What stands above a definition and belongs to it: decorators, attributes, comments."""
_DEFINITION = re.compile(
    r"((export|default|pub(\([^)]*\))?|public|private|protected|internal|static|abstract|final|async|override|unsafe|"
    r"inline|const|local)\s+)*(def|class|func|fn|function|impl|struct|enum|trait|interface|namespace|module|mod)\b"
    r"|(public|private|protected)\s"
)
_CONTINUATIONS = frozenset(("else", "elif", "elseif", "elsif", "except", "finally", "catch", "rescue", "ensure"))
_CONTINUING = ".{&|?:=+)]},;<>%^"
"""What a line begins with that goes on with the statement above it."""
_TOP = re.compile(
    r"^([ \t]*)(@\w|(async )?def \w|class \w+\s*[:({]|(export|function|func|fn|pub|impl|static|public)\s)", re.MULTILINE
)
_CLASS = re.compile(r"\b(class|interface|impl|trait|struct|namespace|module|mod)\b")
_PYTHON_OPENER = re.compile(r"\s*(async|class|def|elif|else|except|finally|for|if|try|while|with)\b.*:$")
_CASE = re.compile(r"\s*(case\b.*|default\s*):$")
_END_WORD_OPENER = re.compile(
    r"(\b(do|then|else|begin)|\)|\|)$|^\s*(local\s+)?(def|class|module|function|if|for|while)\b"
)


class Trimmer:
    """One completion. Used by one thread at a time."""

    def __init__(self, before: str, after: str, *, path: str = "", language: str = "", mode: TrimMode = "auto") -> None:
        """Look at what stands around the cursor; `path`, or else `language`, tells the language."""
        self._is_off = mode == "off"
        self._is_ended = False
        if self._is_off:
            return
        self._rules = rules = rules_of(path, language)
        head = before[before.rfind("\n") + 1 :]
        tail, _, below = after.partition("\n")
        self._tail = tail.rstrip()[:_TAIL_CHARS]
        self._head_end = head[-1:]
        self._lexer, opened_by = _read_before(before, rules)
        lexer = self._lexer
        self._entry_quote = lexer.quote if lexer.quote in {"'", '"', "`"} and lexer.quote in self._tail else ""
        self._entry = len(lexer.stack)  # height of the stack of brackets outside of this completion
        num_closed = count_unmatched(after[:_SCAN_CHARS], Lexer(rules, quote=lexer.quote), most=self._entry)
        self._floor = min(num_closed, self._entry)  # brackets below this height are closed by the text after
        self._below = next(
            (line.rstrip() for line in _lines_of(below) if line.strip() and not line.lstrip().startswith(_PREAMBLES)),
            "",
        )

        self._is_line = mode == "line" or (
            mode == "auto" and _is_line(head, tail, lexer, has_opened=opened_by is not None)
        )
        self._is_colon = opened_by is not None and head.rstrip()[-1:] == ":"
        self._least_indent = -1 if opened_by is None or opened_by.rstrip()[-1:] in ("(", "[") else _width(opened_by) + 1
        self._is_whole_body = opened_by is not None and not _CLASS.search(opened_by)
        self._base: int | None = None  # indentation of the block
        if mode == "block" and head.strip() and opened_by is None:
            self._base = _width(head)

        self._held = ""  # text taken and not returned
        self._num_shown = 0
        self._has_shown = False  # anything but space
        self._is_line_start = not head.strip()
        self._count = 0
        self._content_end = 0  # where trailing space begins
        self._safe_end = 0  # up to here nothing is taken back
        self._end_at: int | None = None
        self._recent = ""
        self._is_coda = False  # behind the brace that closed the block
        self._has_text = False
        # the current line
        self._line = head
        self._is_blank = not head.strip()
        self._is_first = True
        self._indent = _width(head)
        self._height = self._entry
        self._word: str | None = None  # its first word, while the word may go on and decides something
        self._line_end_above = 0
        is_next = self._below.startswith(head) and not (self._is_line_start and tail.strip())
        self._suspects = [self._below] if is_next and _has_word(self._below) else []
        # lines above
        self._is_continued = False
        self._is_after_blank = False
        self._has_body = False
        self._is_definition = False
        self._is_preamble = True
        self._equal_lines = 1
        self._previous_line = ""
        self._lines: deque[str] = deque(maxlen=_CYCLE_LINES * _MOST_CYCLES)

    @property
    def is_ended(self) -> bool:
        """Whether the completion is complete, so that more text changes nothing."""
        return self._is_ended

    def push(self, text: str) -> tuple[str, bool]:
        """Take what the model wrote; return the text that may be shown now, and whether the completion has ended."""
        if self._is_ended:
            return "", True
        if self._is_off:
            return text, False
        self._held += text
        start = 0
        while start < len(text) and not self._has_end():
            part = text[start : start + _STRIDE - self._count % _STRIDE]
            for char in part:
                self._take(char)
                if self._has_end():
                    break
            start += len(part)
            self._recent = (self._recent + part)[-_WINDOW:]
            if not self._has_end() and self._count % _STRIDE == 0 and _is_periodic(self._recent):
                self._end_at = self._safe_end
        if self._end_at is not None:
            return self._finish(self._end_at), True
        return self._release(self._safe_end - self._overlap(self._safe_end)), False

    def flush(self) -> str:
        """Return what is still to be shown when the model has ended the text by itself."""
        if self._is_off or self._is_ended:
            return ""
        if self._word is not None:
            self._decide()
        if self._end_at is None and self._is_repeated():
            self._end_at = self._line_end_above
        if self._end_at is None:
            self._end_at = self._count if self._tail else self._content_end
        return self._finish(self._end_at)

    def _has_end(self) -> bool:
        return self._end_at is not None

    def _finish(self, end: int) -> str:
        self._is_ended = True
        overlap = self._overlap(end, is_final=True)
        is_bare = not (self._has_shown or self._held[: max(end - overlap - self._num_shown, 0)].strip())
        return self._release(end if is_bare and self._is_line_start else end - overlap)

    def _release(self, end: int) -> str:
        num_new = end - self._num_shown
        if num_new <= 0:
            return ""
        shown, self._held = self._held[:num_new], self._held[num_new:]
        self._num_shown = end
        self._has_shown = self._has_shown or bool(shown.strip())
        self._head_end = shown[-1]
        return shown

    def _overlap(self, end: int, *, is_final: bool = False) -> int:
        """Return how many characters at the end of the text stand right of the cursor already."""
        tail = self._tail
        if not tail or tail.lstrip()[0] in CLOSERS:  # brackets are counted, not compared
            return 0
        text = self._held[: max(end - self._num_shown, 0)]
        for size in range(min(len(tail), len(text)), 0, -1):
            if text.endswith(tail[:size]):
                previous = text[-size - 1] if len(text) > size else self._head_end
                is_torn = _is_word(previous + tail[0]) or _is_word(tail[size - 1 : size + 1])
                if not (is_final and is_torn):
                    return size
        return 0

    def _take(self, char: str) -> None:
        self._count += 1
        if char == "\n":
            self._take_newline()
            return
        if self._suspects:
            at = len(self._line)
            self._suspects = [s for s in self._suspects if s[at : at + 1] == char or (at >= len(s) and char.isspace())]
        self._line += char
        if char.isspace():
            if self._is_blank:
                self._indent = _width(self._line)
            elif self._word is not None:
                self._decide()
            if self._end_at is None:
                self._lexer.step(char)
            if not self._suspects and self._word is None:
                self._safe_end = self._content_end
            return
        if self._is_blank:
            self._is_blank = False
            self._begin_line(char)
        elif self._word is not None:
            if char.isalnum() or char == "_":
                self._word += char
            else:
                self._decide()
        if self._end_at is None:
            self._take_code(char)
        if self._end_at is None:
            self._has_text = True
            self._content_end = self._count
            if self._word is None and not self._suspects:
                self._safe_end = self._count

    def _take_code(self, char: str) -> None:
        """Take a character that is not space: it may close the block, or what the text after closes."""
        lexer = self._lexer
        if self._is_colon and self._base is None and not self._is_line:
            self._is_line = True  # the body stands on the line of its opener
        if self._is_coda and char not in ")];,":
            if char.isalpha():
                self._end_at = self._content_end
                return
            self._is_coda, self._is_line = False, True
        is_closer = char in CLOSERS and not lexer.quote and self._rules.has_brackets
        if is_closer:
            height = len(lexer.stack)
            if height <= self._floor or lexer.stack[-1] != OPENERS[CLOSERS.index(char)]:
                self._end_at = self._count - 1 if self._tail else self._content_end
                return
        quote = lexer.quote
        lexer.step(char)
        if self._entry_quote and quote and not lexer.quote and quote == self._entry_quote:
            self._end_at = self._count - len(quote)  # the text after has that quote
            return
        if quote and not lexer.quote:
            self._entry_quote = ""
        if is_closer:
            height = len(lexer.stack)
            if height < self._entry:
                self._entry = height
                self._is_coda = char == "}" and self._rules.has_braces and not self._is_line
                self._is_line = self._is_line or not self._is_coda
            elif height == self._entry and char == "}" and self._height > self._entry:
                self._has_body = True

    def _begin_line(self, char: str) -> None:
        """Take note of a line's first character."""
        if self._is_line:
            return
        if self._base is None:
            if char == "#" and self._rules.has_braces:
                return  # the preprocessor's lines stand at the margin
            if self._indent < self._least_indent and char not in CLOSERS:
                self._is_line = True  # no block, but it is all that the model has to say
                return
            self._base = self._indent
            self._is_first = True
        elif self._lexer.quote or self._height > self._entry or self._is_continued:
            return
        elif (char.isalnum() or char == "_") and self._depends_on_word():
            self._word = char
        else:
            self._decide(char)

    def _depends_on_word(self) -> bool:
        """Tell whether the first word of this line decides whether the block goes on."""
        if self._indent < (self._base or 0):
            return bool(self._rules.end_words)
        return self._indent == self._base and (self._is_at_top() or self._is_definition)

    def _is_at_top(self) -> bool:
        return self._base == 0 and self._entry == 0 and not self._is_whole_body

    def _decide(self, first: str = "") -> None:
        """Decide by the beginning of a line whether the block goes on: by its first word, or `first` if it has none."""
        word, self._word = self._word or "", None
        base = self._base or 0
        if self._indent > base:
            self._has_body = True
            return
        if self._indent < base:
            if (first == "#" and self._rules.has_braces) or (first and first in CLOSERS):
                return  # the preprocessor's; brackets decide for themselves
            if word in self._rules.end_words and not self._below.lstrip().startswith(word):
                self._is_line = True
            else:
                self._end_at = self._line_end_above
            return
        if word in _CONTINUATIONS or word in self._rules.end_words or (first and first in _CONTINUING):
            return
        if not self._is_preamble:
            is_apart = self._is_after_blank or self._has_body or _DEFINITION.match(self._line.strip() + " ")
            if (self._is_at_top() and is_apart) or (self._is_definition and not self._is_whole_body):
                self._end_at = self._line_end_above
        self._is_first = True

    def _take_newline(self) -> None:
        if self._word is not None:
            self._decide()
        if self._end_at is None and self._is_repeated():
            self._end_at = self._line_end_above
        line = self._line.rstrip()
        if self._end_at is None and line:
            self._note_line(line)
        is_over = self._is_coda or (self._is_line and (self._has_text or bool(self._tail)))
        if self._end_at is None and is_over:
            self._end_at = self._content_end
        if self._end_at is not None:
            return
        is_code = not self._lexer.quote or self._lexer.quote == self._rules.line_comment
        self._lexer.step("\n")
        self._safe_end = self._content_end
        self._is_continued = is_code and line.endswith("\\")
        self._is_after_blank = is_code and not line
        self._line, self._is_blank, self._indent = "", True, 0
        self._height = len(self._lexer.stack)
        self._line_end_above = self._content_end
        self._suspects = []
        if _has_word(self._below) and not self._lexer.quote and self._height <= self._entry:
            self._suspects.append(self._below)
        if self._equal_lines >= _MOST_EQUAL_LINES and _has_word(self._previous_line):
            self._suspects.append(self._previous_line)

    def _is_repeated(self) -> bool:
        """Tell whether the line is one that must not come again."""
        line = self._line.rstrip()
        return self._has_text and any(line == suspect for suspect in self._suspects)

    def _note_line(self, line: str) -> None:
        """Keep what later lines are compared with."""
        if self._is_first:  # of a statement of the block itself
            self._is_first = False
            text = line.lstrip()
            if self._is_preamble:
                self._is_definition = bool(_DEFINITION.match(text))
            self._is_preamble = self._is_preamble and text.startswith(_PREAMBLES)
        self._equal_lines = self._equal_lines + 1 if line == self._previous_line else 1
        self._previous_line = line
        self._lines.append(line)
        if _has_word(line) and _is_cycle(self._lines):
            self._end_at = self._content_end


class TrimmedSink:
    """Stands between an engine and a sink: passes on what may be shown, and cancels the request where its text ends.

    The request then counts as finished, with the tokens that the engine says it took. Called on the engine's thread.
    """

    def __init__(self, sink: Sink, cancel: Callable[[], None]) -> None:
        """`cancel` ends the request in the engine, which answers with the last output."""
        self._trimmer = Trimmer("", "", mode="off")
        self._sink = sink
        self._cancel = cancel
        self._gap: float | None = None
        self.is_early = False
        """Whether the request was cancelled because its text had ended."""
        self.is_cut = False
        """Whether the text ended here and not where the model ended it."""
        self.beyond = ""
        """What the model wrote after the end of the text."""

    def begin(self, request: Request, mode: TrimMode) -> None:
        """Look at what was asked, before the first output; takes a fraction of a millisecond."""
        self._trimmer = Trimmer(
            request.before,
            request.after,
            path=request.path,
            mode=mode,
        )

    def take(self, output: Output) -> None:
        """Take an output of the engine."""
        was_ended = self._trimmer.is_ended
        text, is_ended = self._trimmer.push(output.text)
        self.beyond = (self.beyond + output.text)[len(text) :]
        if output.finish is not None:
            self._sink(self._last(output, text, output.finish, is_ended=is_ended))
            return
        if not was_ended:
            gaps = [gap for gap in (self._gap, output.logit_gap) if gap is not None]
            self._gap = min(gaps, default=None)
        if text:
            self._sink(msgspec.structs.replace(output, text=text, logit_gap=self._gap))
            self._gap = output.logit_gap  # some of this token may still be held
        if is_ended and not was_ended:
            self.is_early = True
            self._cancel()

    def _last(self, output: Output, text: str, finish: Finish, *, is_ended: bool) -> Output:
        if finish.state == "cancelled" and self.is_early:
            finish = msgspec.structs.replace(finish, state="finished", reason="stop")
        elif finish.state == "finished":
            self.is_early = False
            rest = self._trimmer.flush()
            text, self.beyond = text + rest, self.beyond[len(rest) :]
            if is_ended:
                finish = msgspec.structs.replace(finish, reason="stop")
        self.is_cut = is_ended and finish.state == "finished"
        gaps = [gap for gap in (self._gap, output.logit_gap) if gap is not None]
        return msgspec.structs.replace(output, text=text, logit_gap=min(gaps, default=None), finish=finish)


def _is_line(head: str, tail: str, lexer: Lexer, *, has_opened: bool) -> bool:
    """Tell whether a programmer would complete a line here, and not a block."""
    if lexer.quote:
        return True
    if tail.strip(" \t\r;,:\"'`" + CLOSERS):
        return True
    return bool(head.strip()) and not has_opened


def _read_before(before: str, rules: Rules) -> tuple[Lexer, str | None]:
    """Return the state at the cursor, and the line that opened a block right before it, if one did.

    That line is the cursor's own or the last one above; where a statement takes several lines, it is the first of them.
    """
    lexer = Lexer(rules)
    begin = _top_of(before, rules)
    lines = before[begin:].split("\n")
    heights = []
    for number, line in enumerate(lines):
        heights.append(-1 if lexer.quote else len(lexer.stack))
        lexer.scan(line if number == len(lines) - 1 else line + "\n")
    if len(lexer.quote) == 3 and begin and not _TOP.match(before, begin):
        lexer = Lexer(rules)  # begun anywhere, perhaps inside a string
    comment = rules.line_comment or "\n"
    last = next((n for n, line in _backwards(lines) if line.strip() and not line.lstrip().startswith(comment)), None)
    if last is None or (last < len(lines) - 1 and lines[-1].strip()):
        return lexer, None
    text = lines[last].rstrip()
    if lexer.quote and rules.has_colon_blocks and _PYTHON_OPENER.match(text):  # a quote far above was misread
        return Lexer(rules), text
    height = len(lexer.stack)
    if text[-1] in OPENERS and lexer.stack and not lexer.quote:
        height -= 1
    elif not (
        (text[-1] == ":" and ((rules.has_colon_blocks and not lexer.stack) or _CASE.match(text)))
        or (rules.end_words and _END_WORD_OPENER.search(text))
    ):
        return lexer, None
    if lexer.quote:
        return lexer, None
    while (last and not 0 <= heights[last] <= height) or (last and lines[last - 1].endswith("\\")):
        last -= 1
    return lexer, lines[last]


def _backwards(lines: list[str]) -> Iterator[tuple[int, str]]:
    return ((number, lines[number]) for number in reversed(range(len(lines))))


def _top_of(before: str, rules: Rules) -> int:
    """Return where to begin to read: at a definition, since no string is open there, and no bracket at the margin."""
    start = max(0, len(before) - _SCAN_CHARS)
    tops = list(_TOP.finditer(before, start, before.rfind("\n") + 1))
    if margin := [top for top in tops if not top[1]]:
        return margin[-1].start()
    if not start:
        return 0
    if tops:  # brackets that were opened above are not seen; the first one has the most of them
        return tops[0 if rules.has_braces else -1].start()
    return before.find("\n", start) + 1


def _lines_of(text: str) -> list[str]:
    return text[:2048].split("\n", 64)[:64]


def _width(line: str) -> int:
    """Return the indentation of a line in columns."""
    return len(line[: len(line) - len(line.lstrip())].expandtabs(_TAB))


def _has_word(text: str) -> bool:
    return any(char.isalnum() for char in text)


def _is_word(text: str) -> bool:
    return len(text) > 1 and all(char.isalnum() or char == "_" for char in text)


def _is_periodic(text: str) -> bool:
    """Tell whether a text is nothing but a few characters over and over; rulers of one sign are none."""
    if len(text) < _WINDOW or (len(set(text)) == 1 and not text[0].isalnum()):
        return False
    return any(text[period:] == text[:-period] for period in range(1, _LONGEST_PERIOD + 1))


def _is_cycle(lines: deque[str]) -> bool:
    """Tell whether the last lines are the same few, in turn."""
    held = list(lines)
    for size in range(2, _CYCLE_LINES + 1):
        if len(held) >= size * _MOST_CYCLES and held[-1] == held[-1 - size]:
            part = held[-size:]
            if held[-size * _MOST_CYCLES :] == part * _MOST_CYCLES:
                return True
    return False
