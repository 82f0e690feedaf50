"""`bench context`: what text of other files is worth: rests of lines, exactly right with it and without, side by side.

The lines stand in projects that the starter model was never trained on. A copy of each project is indexed as
`cloudcomplete index` does it, and each line is asked for twice: with the chunks that a server would put ahead of the
prompt, and without. The line's own file is never among them.

Projects: the held-out ones of the training corpus, in eight languages, where `python -m engine.training corpus` has
gathered it (in `CLOUDCOMPLETE_TRAINING`, or where that command puts it); else those of the Python packages installed
here that the corpus does not train on.
"""

import importlib.metadata
import os
import random
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.loader import load_engine
from engine.training.corpus import Document, load_documents
from engine.training.manifest import MANIFEST_PATH, load_manifest
from engine.training.rows import HeldOutRow, make_rows
from engine.types import CompletionEngine, ContextChunk, Output, SamplingParams
from loadtest.scores import edit_similarity, first_line, has_first_line, is_exact_match
from server.config import ServerConfig
from server.prompt import build_request
from server.repositories import Repositories
from server.repository_snapshot import snapshot_path, take_snapshot, write_snapshot
from server.types import CompletionRequest

_ROWS_PER_LANGUAGE = 60
_ROWS_AT_ONCE = 64
_SEED = 20
_MAX_TOKENS = 48
_AT_ONCE = 8
_MOST_FILES, _MOST_FILE_CHARS = 400, 200_000
_RESAMPLES = 2000
_DRAWN_BY = re.compile(r"^(?P<task>\S+) (?P<project>.+)$")


class Answer(msgspec.Struct, frozen=True):
    """What came for a row."""

    text: str
    num_reused_tokens: int
    num_prompt_tokens: int

    def is_right(self, row: HeldOutRow) -> bool:
        """Tell whether it is what stood there."""
        return is_exact_match(self.text, row.canonical_solution)


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Ask for all rows twice."""
    documents = gather_documents()
    rows = make_rows(documents, cursor="line", per_language=_ROWS_PER_LANGUAGE, seed=_SEED)
    random.Random(_SEED).shuffle(rows)  # all languages from the beginning
    engine = load_engine(config=EngineConfig(max_slowdown=0.0))  # rows wait for each other, nobody for them
    try:
        contexts = choose_contexts(documents, rows, max_tokens=engine.stats().max_context - _MAX_TOKENS)
        on_progress(f"{len(rows):,} rows, {sum(map(bool, contexts)):,} of them with context")
        without, given = list[Answer](), list[Answer]()
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            without += ask(engine, rows[part], [()] * len(rows[part]))
            given += ask(engine, rows[part], contexts[part])
            pairs = [
                (one.is_right(row), other.is_right(row)) for row, one, other in zip(rows, without, given, strict=False)
            ]
            num_without, num_given = (sum(column) for column in zip(*pairs, strict=True))
            on_progress(f"{len(given):,} rows asked: {num_without} right without context, {num_given} with it")
    finally:
        engine.close(timeout_s=0.0)
    table = [
        {
            "task_id": row.task_id,
            "language": row.language,
            "context": [chunk.path for chunk in context],
            "is_exact_match": one.is_right(row),
            "is_exact_match_with_context": other.is_right(row),
            "edit_similarity": edit_similarity(one.text, row.canonical_solution),
            "edit_similarity_with_context": edit_similarity(other.text, row.canonical_solution),
            "solution": row.canonical_solution,
            "answer": one.text,
            "answer_with_context": other.text,
        }
        for row, context, one, other in zip(rows, contexts, without, given, strict=True)
    ]
    return summarise(table), table


def summarise(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the headline of a table of rows."""
    pairs = [(row["is_exact_match"], row["is_exact_match_with_context"]) for row in table]
    low, high = gain_interval(pairs)
    return {
        "exact_match_relative_gain": relative_gain(pairs),
        "exact_match_relative_gain_low": low,
        "exact_match_relative_gain_high": high,
        "exact_match": _mean(one for one, _ in pairs),
        "exact_match_with_context": _mean(other for _, other in pairs),
        "edit_similarity": _mean(row["edit_similarity"] for row in table),
        "edit_similarity_with_context": _mean(row["edit_similarity_with_context"] for row in table),
        "rows": len(table),
        "rows_with_context": sum(bool(row["context"]) for row in table),
        "rows_gained": sum(other and not one for one, other in pairs),
        "rows_lost": sum(one and not other for one, other in pairs),
    }


def relative_gain(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Return by how much of those right without context more are right with it; NaN where none was right."""
    num_without = sum(one for one, _ in pairs)
    return sum(other for _, other in pairs) / num_without - 1 if num_without else float("nan")


def gain_interval(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float]:
    """Return the 95 % interval of the relative gain, by drawing the rows again and again (paired bootstrap)."""
    chooser = random.Random(_SEED)
    gains = sorted(
        gain for _ in range(_RESAMPLES) if (gain := relative_gain(chooser.choices(pairs, k=len(pairs)))) == gain
    )
    if not gains:
        return float("nan"), float("nan")
    return gains[int(0.025 * len(gains))], gains[int(0.975 * (len(gains) - 1))]


def gather_documents() -> list[Document]:
    """Return the held-out documents of the corpus, or of installed packages that it does not train on."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudcomplete" / "training"
    work = Path(os.environ.get("CLOUDCOMPLETE_TRAINING") or default)
    if (work / "documents.msgpack").exists():
        return [document for document in load_documents(work) if document.split == "held-out"]
    return list(_installed_documents())


def choose_contexts(
    documents: Sequence[Document], rows: Sequence[HeldOutRow], *, max_tokens: int
) -> list[tuple[ContextChunk, ...]]:
    """Return, for each row, what a server that has indexed its project puts ahead of the prompt."""
    with tempfile.TemporaryDirectory(prefix="cloudcomplete-context-") as place:
        repositories = {}
        for number, project in enumerate(sorted({document.project for document in documents})):
            root, kept = Path(place) / f"{number}-source", Path(place) / f"{number}-index"
            for document in documents:
                if document.project == project:
                    path = root / document.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(document.text, "utf-8")
            write_snapshot(snapshot_path(kept, tenant="", root=root), take_snapshot(root, tenant="")[0])
            repositories[project] = Repositories(ServerConfig(repository_directory=str(kept)))
            repositories[project].look()
        return [
            repositories[_project_of(row)].context(
                CompletionRequest(before=row.prompt, after=row.suffix, path=row.path), tenant="", max_tokens=max_tokens
            )
            for row in rows
        ]


def ask(
    engine: CompletionEngine, rows: Sequence[HeldOutRow], contexts: Sequence[tuple[ContextChunk, ...]]
) -> list[Answer]:
    """Return the answers, cut at the end of their first line, in the order of the rows."""
    answers: dict[int, Answer] = {}
    room, is_done = threading.Semaphore(_AT_ONCE), threading.Semaphore(0)

    def begin(number: int) -> None:
        parts: list[str] = []

        def take(output: Output) -> None:
            parts.append(output.text)
            text = "".join(parts)
            if output.finish is not None:
                usage = output.finish.usage
                answers[number] = Answer(first_line(text), usage.num_reused_tokens, usage.num_prompt_tokens)
                room.release()
                is_done.release()
            elif has_first_line(text):
                engine.cancel(output.request_id)

        row = rows[number]
        asked = CompletionRequest(
            before=row.prompt, after=row.suffix, path=row.path, language=row.language, context=contexts[number]
        )
        sampling = SamplingParams(max_tokens=_MAX_TOKENS)
        engine.submit(
            build_request(asked, request_id=f"{number}", sampling=sampling, config=ServerConfig()),
            take,
        )

    for number in range(len(rows)):
        room.acquire()
        begin(number)
    for _ in rows:
        is_done.acquire()
    return [answers[number] for number in range(len(rows))]


def _installed_documents() -> Iterator[Document]:
    """Yield Python files of installed packages that no manifest entry trains on."""
    trained = {_plain(package.name) for package in load_manifest(MANIFEST_PATH).packages if package.split == "train"}
    for distribution in sorted(importlib.metadata.distributions(), key=lambda each: each.name or ""):
        if not distribution.name or _plain(distribution.name) in trained:
            continue
        files = [file for file in distribution.files or () if file.suffix == ".py" and ".." not in file.parts]
        for file in files[:_MOST_FILES]:
            try:
                text = Path(str(file.locate())).read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if 100 < len(text) < _MOST_FILE_CHARS:
                yield Document(
                    project=f"pypi:{distribution.name}", path=str(file), language="python", split="held-out", text=text
                )


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _project_of(row: HeldOutRow) -> str:
    found = _DRAWN_BY.match(row.task_id)
    assert found is not None, "a row's name ends in its project"
    return found["project"]


def _mean(values: Iterator[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)
