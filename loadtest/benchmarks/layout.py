"""`bench layout`: how many prompt tokens one more typed character costs under each way to lay out the prompt.

Counts tokens after the longest common prefix of two prompts that follow each other, while whole lines of a file are
typed; nothing is timed.
"""

import statistics
from collections.abc import Callable
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from engine.fim import FimTemplate, build_prompt
from engine.loader import STARTER
from engine.tokenizer import Tokenizer
from engine.types import Request

_TEXT = Path(__file__).parent.parent / "samples" / "cart.ts"
_EVERY_LINES = 3
_DEEP = 8


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Type every third line of a sample file and count, for three layouts."""
    tokenizer = Tokenizer.from_directory(STARTER)
    template = FimTemplate.detect(tokenizer)
    text = _TEXT.read_text(encoding="utf-8")
    line_starts = [0, *(i + 1 for i, char in enumerate(text) if char == "\n")]

    def cut_at(at: int, end: int, cut: int) -> tuple[int, ...]:
        request = Request(request_id="", before=text[:at], after=text[end:], cut=cut)
        return build_prompt(request, tokenizer, template, max_prompt_tokens=1 << 20).tokens

    def plain(at: int, end: int, cut: int) -> tuple[int, ...]:
        before, after = tokenizer.encode(text[:at]), tokenizer.encode(text[end:])
        return (template.prefix_id, *before, template.suffix_id, *after, template.middle_id)

    layouts = (("plain", plain, 0), ("cut_at_line", cut_at, 0), ("cut_8_lines_above", cut_at, _DEEP))
    rows = []
    for name, layout, depth in layouts:
        counts = []
        for number in range(_DEEP, len(line_starts) - 2, _EVERY_LINES):
            start, end, cut = line_starts[number], line_starts[number + 1] - 1, line_starts[number - depth]
            prompts = [layout(at, end, cut) for at in range(start + 1, end + 1)]
            counts += [_num_computed(old, new) for old, new in pairwise(prompts)]
        row = {"layout": name, "keystrokes": len(counts), "tokens_p50": statistics.median(counts)}
        rows.append({**row, "tokens_max": max(counts)})
        on_progress(f"{name:>18}: {row['tokens_p50']:.0f} tokens a keystroke (p50), {max(counts)} at most")
    return {f"{row['layout']}_tokens_p50": row["tokens_p50"] for row in rows}, rows


def _num_computed(old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """Return the tokens of `new` to compute when the KV of `old` is kept: at least the last one."""
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    return len(new) - min(common, len(new) - 1)
