"""`bench trim`: of real blocks of code, how many a completion would end with exactly; and what deciding that costs.

No model is asked. A block is cut out of a file of Python's standard library, and the block and what really stands
below it are pushed, as if a model had written them and had gone on and on; the trimmer should end right behind the
block. Twice: with the rest of the file right of the cursor (`filled`), and with nothing there (`appended`), where
only the text itself tells. Kinds of blocks:

- `line`: the rest of a line, from a place in its middle.
- `body`: what stands below a line that opens a block, up to its end: of functions, loops, conditions, `with`, `try`.
- `definition`: a function or class, decorators and all, from its first character.
- `rest`: a body from one of its later statements on.
- `braces`: blocks of the product's own C kernels, whose end is where a brace stands below the first line's beginning.

Where a block ends is told by Python's own parser, or by that brace. Comments below a body that are indented like it
belong to it. Beside it, two simpler rules on the same blocks: ending at an empty line, and at a line that is indented
less than the first.
"""

import ast
import itertools
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import engine
from server.trim import Trimmer

_MODULES_PER_RUN = 100
_BLOCKS_PER_KIND = 1000
_BLOCK_CHARS = 1200
"""Longer blocks are left out: no completion is that long."""
_BELOW_CHARS = 1000
_CHARS_PER_TOKEN = 4
_COMPLETION_CHARS = 10_000
_REPEATS = 20
_BODIES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.ExceptHandler)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Block(NamedTuple):
    """A block in a file."""

    kind: str
    path: str
    source: str
    """The whole file."""
    start: int
    end: int
    """Behind its last character that is not space."""

    @property
    def before(self) -> str:
        """What stands left of the block."""
        return self.source[: self.start]

    @property
    def text(self) -> str:
        """The block."""
        return self.source[self.start : self.end]

    @property
    def below(self) -> str:
        """What really follows, from the line break on."""
        return self.source[self.end :]


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Trim blocks of every kind, then time the trimmer on long completions."""
    blocks = _sample([*_python_blocks(), *_brace_blocks()])
    headline: dict[str, float] = {}
    rows = []
    for kind, group in itertools.groupby(sorted(blocks, key=lambda block: block.kind), lambda block: block.kind):
        row = _measure_kind(kind, list(group))
        rows.append(row)
        headline |= {f"{kind}_{side}_exact_share": row[f"{side}_exact_share"] for side in ("filled", "appended")}
        on_progress(
            f"{kind:>10}: {row['blocks']:,} blocks, ended exactly {row['filled_exact_share']:.3f} filled, "
            f"{row['appended_exact_share']:.3f} appended"
        )
    return headline | _measure_time(blocks), rows


def end_of(block: Block, *, has_after: bool) -> str:
    """Return what a trimmer shows of a block and what follows it."""
    trimmer = Trimmer(block.before, block.below if has_after else "", path=block.path)
    text = block.text + block.below[:_BELOW_CHARS]
    shown = []
    for start in range(0, len(text), _CHARS_PER_TOKEN):
        part, is_ended = trimmer.push(text[start : start + _CHARS_PER_TOKEN])
        shown.append(part)
        if is_ended:
            break
    return "".join(shown) + trimmer.flush()


def _measure_kind(kind: str, blocks: list[Block]) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "blocks": len(blocks)}
    for side in ("filled", "appended"):
        ends = [(block, end_of(block, has_after=side == "filled")) for block in blocks]
        row[f"{side}_exact_share"] = _share(end == _truth(block, side) for block, end in ends)
        row[f"{side}_short_share"] = _share(len(end) < len(_truth(block, side)) for block, end in ends)
    row["empty_line_exact_share"] = _share(_end_at_empty_line(block) == block.text for block in blocks)
    row["dedent_exact_share"] = _share(_end_at_dedent(block) == block.text for block in blocks)
    return row


def _truth(block: Block, side: str) -> str:
    """Return the block; where nothing stands below, one in braces has its closing brace too."""
    if block.kind == "braces" and side == "appended":
        return block.text + block.below[: block.below.index("}") + 1]
    return block.text


def _share(values: Iterator[bool]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


def _end_at_empty_line(block: Block) -> str:
    text = block.text + block.below
    return text[: at if (at := text.find("\n\n", 1)) >= 0 else len(text)]


def _end_at_dedent(block: Block) -> str:
    text = block.before[block.before.rfind("\n") + 1 :] + block.text + block.below
    lines = text.split("\n")
    full = [line for line in lines if line.strip()]
    indent = min((_indent(line) for line in full[1:2]), default=0) if block.kind == "body" else _indent(full[0])
    end = 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) >= indent):
        end += 1
    return "\n".join(lines[:end]).rstrip()[len(text) - len(block.text + block.below) :]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _sample(blocks: list[Block]) -> list[Block]:
    """Return some blocks of each kind, always the same."""
    random.Random(0).shuffle(blocks)
    kept = []
    for kind in sorted({block.kind for block in blocks}):
        kept += [block for block in blocks if block.kind == kind][:_BLOCKS_PER_KIND]
    return kept


def _python_blocks() -> Iterator[Block]:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in random.Random(0).sample(paths, min(_MODULES_PER_RUN, len(paths))):
        text = path.read_text(encoding="utf-8")
        yield from blocks_of_module(path.name, text)


def blocks_of_module(path: str, text: str) -> Iterator[Block]:
    lines = text.split("\n")
    places = random.Random(path)

    def block(kind: str, first: int, last: int, *, opener_end: bool = False) -> Iterator[Block]:
        """From the line `first` to `last`, counted from 0, with the comments that belong to it."""
        indent = _indent(lines[first])
        for number in range(last + 1, len(lines)):
            line = lines[number]
            if line.strip() and (not line.lstrip().startswith("#") or _indent(line) < max(indent, 1)):
                break
            if line.strip() and kind != "definition":
                last = number
        before = "\n".join(lines[:first]) + "\n" + ("" if opener_end else lines[first][:indent])
        start = len(before) - opener_end
        end = len("\n".join(lines[: last + 1]))
        if 0 < end - start <= _BLOCK_CHARS and "\n" in text[end:]:
            yield Block(kind, path, text, start, len(text[:end].rstrip()))

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _BODIES) and node.body[0].lineno > node.lineno:
            first, last = _first_line(node.body[0]), node.body[-1].end_lineno or 0
            above = lines[first - 2].strip()
            if above.endswith(":") and not above.startswith("#"):  # no comment between the opener and its body
                yield from block("body", first - 1, last - 1, opener_end=True)
                if len(node.body) > 2:
                    later = places.randrange(1, len(node.body))
                    if not isinstance(node.body[later], _DEFINITIONS) and ";" not in lines[node.body[later].lineno - 1]:
                        yield from block("rest", _first_line(node.body[later]) - 1, last - 1)
        if isinstance(node, _DEFINITIONS):
            yield from block("definition", _first_line(node) - 1, (node.end_lineno or 0) - 1)
        if isinstance(node, ast.Assign | ast.Return | ast.AugAssign) and node.lineno == node.end_lineno:
            line = lines[node.lineno - 1]
            words = [at for at in range(_indent(line) + 1, len(line)) if line[at - 1] == " "]
            if words and "#" not in line and ";" not in line:
                start = len("\n".join(lines[: node.lineno - 1])) + 1
                at = start + places.choice(words)
                yield Block("line", path, text, at, start + len(line.rstrip()))


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _brace_blocks() -> Iterator[Block]:
    for path in sorted((Path(engine.__path__[0]) / "native").glob("*.c")):
        yield from blocks_in_braces(path.name, path.read_text(encoding="utf-8"))


def blocks_in_braces(path: str, text: str) -> Iterator[Block]:
    """Yield the blocks whose opening brace ends a line and whose closing one begins a line indented the same."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line.endswith("{") or not line.strip("{ "):
            continue
        closing = _indent(line) * " " + "}"
        last = next((n for n in range(number + 1, len(lines)) if lines[n].startswith(closing)), 0)
        start, end = len("\n".join(lines[: number + 1])), len("\n".join(lines[:last]))
        if start < end <= start + _BLOCK_CHARS and lines[last].rstrip() == closing:
            yield Block("braces", path, text, start, len(text[:end].rstrip()))


def _measure_time(blocks: list[Block]) -> dict[str, float]:
    """Return microseconds of processor time a token, and to begin; also for a long completion over a short one."""
    bodies = [block for block in blocks if block.kind == "body"]
    text = "\n".join(line for block in bodies[:200] for line in block.text.split("\n") if "'''" not in line)
    text = text.replace('"""', "")
    short_us = _time_per_token(text[:1000])
    long_us = _time_per_token(text[:_COMPLETION_CHARS])
    began = time.thread_time()
    for block in bodies[:500]:
        Trimmer(block.before, block.below, path=block.path)
    setup_us = (time.thread_time() - began) / len(bodies[:500]) * 1e6
    return {"us_per_token": short_us, "us_per_token_10_kb": long_us, "us_to_begin": setup_us}


def _time_per_token(text: str) -> float:
    """Return the fewest microseconds of a few runs over a text that never ends a block."""
    best = float("inf")
    lines = [f"    {line.strip()}" for line in text.split("\n") if line.strip(" )]}\"'")]
    body = "\n" + "\n".join(line for line in lines if "\"'"[0] not in line and not set("([{}])'\\") & set(line))
    while len(body) < len(text):
        body += body
    body = body[: len(text)]
    parts = [body[at : at + _CHARS_PER_TOKEN] for at in range(0, len(body), _CHARS_PER_TOKEN)]
    for _ in range(_REPEATS):
        trimmer = Trimmer("def f():", "", path="a.py")
        began, num_pushed = time.thread_time(), 0
        for part in parts:
            num_pushed += 1
            if trimmer.push(part)[1]:
                break
        best = min(best, (time.thread_time() - began) / num_pushed * 1e6)
    return best
