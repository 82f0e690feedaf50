"""What of a text is code, what is in a string or a comment, and which brackets are open: one character at a time.

A small lexer for many languages rather than a parser for each: where a completion ends depends on strings, comments,
brackets and indentation, and those can be told without a grammar, in text that is unfinished and on both sides of a
cursor. What it gets wrong it gets wrong until the end of the line, except for strings over several lines.

Knows no completions and no engine. Invariant: the state after a text does not depend on how the text was split.
"""

import re
from pathlib import PurePosixPath

import msgspec

from server.prompt import EXTENSIONS

OPENERS, CLOSERS = "([{", ")]}"
_PARTNER = {")": "(", "]": "[", "}": "{"}
_PLAIN = re.compile(r"[^\"'`#/*\\()\[\]{}\n-]+")
"""Characters that change no state, whatever it is."""
_BEFORE_REGEX = "(,=:[!&|?{};<>+-*%~^"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How a language writes strings, comments and blocks."""

    line_comment: str = ""
    """What begins a comment up to the end of the line: one or two equal characters."""
    has_block_comments: bool = False
    """Whether there are comments from /* to */."""
    quotes: str = '"'
    """What strings within a line begin and end with."""
    long_quote: str = ""
    """A quote for strings over several lines."""
    is_long_quote_raw: bool = False
    """Whether a backslash means nothing in such a string."""
    has_triple_quotes: bool = False
    has_runes: bool = False
    """Whether a single quote is a character of at most two code points or else no quote at all (Rust's lifetimes)."""
    has_regexes: bool = False
    has_brackets: bool = True
    """Whether brackets come in pairs; not in prose."""
    has_braces: bool = False
    """Whether blocks stand in braces; else indentation tells."""
    has_colon_blocks: bool = False
    end_words: tuple[str, ...] = ()
    """Words that close a block on a line of their own."""


_C = Rules(line_comment="//", has_block_comments=True, quotes="\"'", has_braces=True)
_SCRIPT = msgspec.structs.replace(_C, long_quote="`", has_regexes=True)
_HASH = Rules(line_comment="#", quotes="\"'")
_END = ("end", "else", "elseif", "elsif", "rescue", "ensure", "when", "in")
_RULES = {
    **dict.fromkeys(("c", "h", "cc", "cpp", "cxx", "hh", "hpp", "cs", "java", "dart", "php", "m"), _C),
    **dict.fromkeys(("js", "jsx", "mjs", "cjs", "ts", "tsx", "mts", "cts", "vue", "svelte"), _SCRIPT),
    **dict.fromkeys(("kt", "kts", "scala", "swift"), msgspec.structs.replace(_C, has_triple_quotes=True)),
    "go": msgspec.structs.replace(_C, long_quote="`", is_long_quote_raw=True),
    "rs": msgspec.structs.replace(_C, quotes='"', has_runes=True),
    "zig": msgspec.structs.replace(_C, has_block_comments=False),
    "css": msgspec.structs.replace(_C, line_comment=""),
    **dict.fromkeys(
        ("py", "pyi", "pyx"), msgspec.structs.replace(_HASH, has_triple_quotes=True, has_colon_blocks=True)
    ),
    **dict.fromkeys(("rb", "ex", "exs", "jl"), msgspec.structs.replace(_HASH, end_words=_END)),
    "lua": Rules(line_comment="--", quotes="\"'", end_words=_END),
    "sh": msgspec.structs.replace(_HASH, end_words=("fi", "done", "esac", "else", "elif")),
    **dict.fromkeys(("r", "pl"), msgspec.structs.replace(_HASH, has_braces=True)),
    "toml": _HASH,
    **dict.fromkeys(("sql", "hs"), Rules(line_comment="--")),
    **dict.fromkeys(("md", "txt", "rst"), Rules(quotes="", has_brackets=False)),
    **dict.fromkeys(("html", "xml", "yaml", "yml"), Rules(quotes="")),
}
_UNKNOWN = Rules()


def rules_of(path: str, language: str) -> Rules:
    """Return a file's rules by its path, or by the editor's language id where the path is empty."""
    extension = PurePosixPath(path).suffix[1:].lower() if path else EXTENSIONS.get(language.lower(), "")
    return _RULES.get(extension, _UNKNOWN)


class Lexer:
    """The state at the end of the text taken so far."""

    __slots__ = ("_is_escaped", "_last", "_length", "_previous", "_rules", "_was_closed", "quote", "stack")

    def __init__(self, rules: Rules, *, quote: str = "") -> None:
        """`quote`: begin inside such a string or comment."""
        self.quote = quote
        """What the text is in: "" code, else what began the string or comment; "regex"."""
        self.stack: list[str] = []
        """The brackets that are open."""
        self._rules = rules
        self._is_escaped = False
        self._previous = ""  # character before, within the same state
        self._last = ""  # last character of code that is not space
        self._length = 0  # characters in this string
        self._was_closed = ""  # the quote that closed an empty string with the character before

    def scan(self, text: str) -> None:
        """Take a whole text; characters that change nothing are skipped at the speed of a regular expression."""
        index = 0
        while index < len(text):
            if plain := _PLAIN.match(text, index):
                if not self.quote and (code := plain[0].rstrip()):
                    self._last = code[-1]
                self._length += plain.end() - index - 1
                index = plain.end() - 1
                self.step(text[index])
                index += 1
            if index < len(text):
                self.step(text[index])
                index += 1

    def step(self, char: str) -> None:
        """Take one character."""
        if self.quote:
            self._step_quoted(char)
        else:
            self._step_code(char)

    def _step_code(self, char: str) -> None:
        rules, previous, was_closed = self._rules, self._previous, self._was_closed
        self._previous, self._was_closed = char, ""
        if char.isalnum() or char.isspace():
            if not char.isspace():
                self._last = char
            return
        if char in OPENERS and rules.has_brackets:
            self.stack.append(char)
        elif char in CLOSERS:
            if _PARTNER[char] in self.stack:
                while self.stack.pop() != _PARTNER[char]:
                    pass
        elif char in rules.quotes or char == rules.long_quote or (char == "'" and rules.has_runes):
            self._open(char * 3 if rules.has_triple_quotes and was_closed == char else char)
        elif char == "#" and rules.line_comment == "#":
            self._open("#")
        elif previous == char and rules.line_comment == char * 2:
            self._open(rules.line_comment)
        elif char == "*" and previous == "/" and rules.has_block_comments:
            self._open("/*")
        elif char == "/" and rules.has_regexes and previous != "/" and (not self._last or self._last in _BEFORE_REGEX):
            self._open("regex")
        self._last = char

    def _step_quoted(self, char: str) -> None:
        quote, previous = self.quote, self._previous
        self._length += 1
        if self._is_escaped:
            self._is_escaped, self._previous = False, ""
            return
        self._previous = char
        if quote in ("#", "//", "--"):
            if char == "\n":
                self._close()
        elif quote == "/*":
            if char == "/" and previous == "*" and self._length > 1:
                self._close()
        elif char == "\\" and not (quote == self._rules.long_quote and self._rules.is_long_quote_raw):
            self._is_escaped = True
        elif quote == "regex":
            if self._length == 1 and char in "/*":  # a comment after all
                self.quote = "//" if char == "/" else "/*"
                self._length = 0
            elif char in "/\n":
                self._close()
        elif len(quote) == 3:
            self._was_closed = self._was_closed + char if char == quote[0] else ""
            if self._was_closed == quote:
                self._close()
        elif char == quote:
            is_empty = self._length == 1
            self._close()
            self._was_closed = quote if is_empty else ""
        elif quote == "'" and self._rules.has_runes and self._length > 1:
            self._close()
            self._step_code(char)
        elif char == "\n" and quote != self._rules.long_quote:
            self._close()

    def _open(self, quote: str) -> None:
        self.quote, self._length, self._previous, self._was_closed = quote, 0, "", ""

    def _close(self) -> None:
        self.quote, self._previous, self._was_closed = "", "", ""
        self._last = '"'


def count_unmatched(text: str, lexer: Lexer, *, most: int) -> int:
    """Return how many closing brackets of the text close what was opened before it; at most `most` are counted."""
    depth = count = 0
    for char in text if most else "":
        if not lexer.quote:
            if char in OPENERS:
                depth += 1
            elif char in CLOSERS:
                depth -= 1
                if -depth > count:
                    count += 1
                    if count >= most:
                        break
        lexer.step(char)
    return count
