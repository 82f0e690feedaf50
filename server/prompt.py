"""What the model is shown of a file: a window around the cursor, and the cut.

Two rules keep the KV of one keystroke useful for the next. The edges of the window stay where they are while the user
types: they are counted from the ends of the file, never from the cursor, and move in steps of many lines. And the cut,
from which on the text is placed behind the text after the cursor (`engine/fim.py`), is a line start that is constant
within a line: whatever is typed on that line only appends tokens to the prompt.

Knows no tokens: what is still too long for the model's context is cut by the engine, which counts it.
"""

import msgspec

from engine.types import Request, SamplingParams
from server.config import ServerConfig
from server.types import CompletionRequest

EXTENSIONS = {
    "c": "c",
    "cpp": "cpp",
    "csharp": "cs",
    "css": "css",
    "dart": "dart",
    "elixir": "ex",
    "go": "go",
    "haskell": "hs",
    "html": "html",
    "java": "java",
    "javascript": "js",
    "javascriptreact": "jsx",
    "json": "json",
    "julia": "jl",
    "kotlin": "kt",
    "lua": "lua",
    "markdown": "md",
    "perl": "pl",
    "php": "php",
    "python": "py",
    "r": "r",
    "ruby": "rb",
    "rust": "rs",
    "scala": "scala",
    "shellscript": "sh",
    "sql": "sql",
    "swift": "swift",
    "toml": "toml",
    "typescript": "ts",
    "typescriptreact": "tsx",
    "yaml": "yaml",
    "zig": "zig",
}
"""Editors' language ids to file extensions: models have learnt to take the language from a path."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a file that the model is shown."""

    before: str
    """Text left of the cursor; always ends at the cursor."""
    after: str
    """Text right of the cursor; always starts at the cursor."""
    cut: int
    """Index into `before` of the start of the cursor's line, or of the window when that line starts before it."""


def build_request(
    request: CompletionRequest,
    *,
    request_id: str,
    sampling: SamplingParams,
    config: ServerConfig,
    tenant: str = "",
    draft: str = "",
) -> Request:
    """Make the engine's request of a client's admitted one; `draft` is text that is expected to come out."""
    window = cut_window(request.before, request.after, config)
    return Request(
        request_id=request_id,
        before=window.before,
        after=window.after,
        cut=window.cut,
        path=request.path or path_of_language(request.language),
        context=request.context,
        sampling=sampling,
        tenant=tenant,
        priority="background" if request.is_background else "interactive",
        session=request.session_id,
        draft=draft,
        is_fresh=request.is_fresh,
        sparse=request.sparse,
    )


def cut_window(before: str, after: str, config: ServerConfig) -> Window:
    """Cut the window around the cursor.

    The cut is the start of the cursor's line: models in the field are asked so, and the line itself is the text that
    changes with every key. A newline moves it, which costs the tokens after the old cut.
    """
    before = before[_window_start(before, config) :]
    after = after[: _window_end(after, config)]
    return Window(before=before, after=after, cut=before.rfind("\n") + 1)


def path_of_language(language: str) -> str:
    """Return a made-up path for a file of which only the language is known; "" for an unknown language."""
    extension = EXTENSIONS.get(language.lower())
    return f"untitled.{extension}" if extension else ""


def _window_start(before: str, config: ServerConfig) -> int:
    """Return where the window starts, counted from the start of the file in steps of lines, or of characters."""
    num_lines_above = before.count("\n")
    start = 0
    if num_lines_above > config.before_lines:
        num_skipped = _round_up(num_lines_above - config.before_lines, config.step_lines)
        newline = len(before)
        for _ in range(num_lines_above - num_skipped + 1):  # upwards: few lines are kept, many may be skipped
            newline = before.rfind("\n", 0, newline)
        start = newline + 1
    if len(before) - start > config.before_chars:
        start = _round_up(len(before) - config.before_chars, config.step_chars)
        newline = before.find("\n", start - 1, start + config.step_chars)  # start at a whole line where one is near
        start = newline + 1 if newline >= 0 else start
    return start


def _window_end(after: str, config: ServerConfig) -> int:
    """Return where the window ends: the mirror of `_window_start`, counted from the end of the file."""
    num_lines_below = after.count("\n")
    end = len(after)
    if num_lines_below > config.after_lines:
        num_skipped = _round_up(num_lines_below - config.after_lines, config.step_lines)
        newline = -1
        for _ in range(num_lines_below - num_skipped):
            newline = after.find("\n", newline + 1)
        end = newline + 1
    if end > config.after_chars:
        end = len(after) - _round_up(len(after) - config.after_chars, config.step_chars)
        newline = after.rfind("\n", end - config.step_chars, end)
        end = newline + 1 if newline >= 0 else end
    return end


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
