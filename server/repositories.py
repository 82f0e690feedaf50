"""Repository context: which text of other files goes ahead of a prompt.

It comes from two places: files that the client sends along, and projects that `cloudcomplete index` has read. Chunks of
up to `MAX_GIVEN_LINES` lines that a client sends are taken as they are; longer ones are files, of which, as of the
projects, the chunks most like the code around the cursor are taken, as long as there is room.

What is chosen stays where it is while somebody types. It depends on lines above and below the cursor whose edges move
in steps of `QUERY_STEP_LINES`, so that a keystroke never changes it; and it is put in order of path and line, so that
the same chunks make the same text, whose KV is still there. Being a part of the prompt, it feeds drafts as well.

A project answers for a path if that lies below its directory, or is one of its files', or lies beside one. Where two
projects could be meant none is used. A tenant's requests see that tenant's projects only.

Snapshots are looked for again every few seconds, beside what is being served; the oldest leave when all take too much
memory. One that cannot be read is told of in the log, once, and the rest go on.
"""

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from engine.fim import CONTEXT_SHARE
from engine.types import ContextChunk
from server.config import ServerConfig
from server.errors import RepositoryError
from server.repository_index import Found, RepositoryIndex
from server.repository_snapshot import SUFFIX, read_snapshot
from server.types import CompletionRequest

QUERY_STEP_LINES = 8
QUERY_LINES_ABOVE = 16
QUERY_LINES_BELOW = 8
MIN_SCORE = 0.1
"""Less likeness than this is none: the room is better used for the file itself."""
MAX_GIVEN_LINES = 64
CHARS_PER_TOKEN = 3
"""Of code, with some room to spare: what is chosen here should fit when it is counted in tokens."""
DEFAULT_CONTEXT_TOKENS = 2048
"""Of models whose engine does not tell."""
LOOK_EVERY_S = 2.0
_MAX_CHOICES = 1024
_MAX_SENT = 32
"""Sets of files sent by clients whose indexes are kept."""

Value = TypeVar("Value")
_log = logging.getLogger(__name__)


class _Project(NamedTuple):
    tenant: str
    root: str
    chunks: RepositoryIndex
    folders: frozenset[str]
    """Directories below the root that have indexed files."""
    stamp: tuple[int, int]
    """Of the snapshot's file: when it was written, and its size."""

    def path_within(self, path: str) -> str | None:
        """Return a path as the project has it; None for one that is none of its."""
        if path.startswith(self.root.rstrip("/") + "/"):
            return path[len(self.root.rstrip("/")) + 1 :]
        is_own = path in self.chunks.paths or str(PurePosixPath(path).parent) in self.folders
        return path if is_own else None


class Repositories:
    """The projects of one server, and the choice of context. Any thread may ask."""

    def __init__(self, config: ServerConfig) -> None:
        """Look for projects at the first request."""
        self._is_on, self._max_bytes = config.repository_context, config.repositories_bytes
        self._directory = config.resolved_repository_directory
        self._lock = threading.Lock()
        # Guarded by the lock:
        self._projects: dict[str, _Project] = {}
        """By the name of their file."""
        self._refused: dict[str, tuple[int, int]] = {}
        """Stamps of files that cannot be read, or for which there was no room."""
        self._choices: OrderedDict[bytes, tuple[ContextChunk, ...]] = OrderedDict()
        self._sent: OrderedDict[bytes, RepositoryIndex] = OrderedDict()
        self._looked_s = float("-inf")
        self._is_looking = False

    def context(self, request: CompletionRequest, *, tenant: str, max_tokens: int) -> tuple[ContextChunk, ...]:
        """Return the text of other files that goes ahead of a prompt of at most `max_tokens`, the client's last."""
        if not self._is_on:
            return request.context
        self._look_again()
        given = tuple(chunk for chunk in request.context if not _is_file(chunk))
        sent = tuple(chunk for chunk in request.context if _is_file(chunk))
        path = request.path.replace("\\", "/").removeprefix("./")
        project, path = self._project_of(path, tenant)
        if project is None and not sent:
            return request.context
        room = int(max_tokens * CONTEXT_SHARE) * CHARS_PER_TOKEN - sum(len(chunk.text) for chunk in given)
        query = around_cursor(request.before, request.after)
        known = [tenant, project.root, repr(project.stamp)] if project is not None else []
        key = _digest([str(room), path, query, *_texts(request.context), *known])
        with self._lock:
            if key in self._choices:
                self._choices.move_to_end(key)
                return self._choices[key]
        found: list[Found] = []
        if sent:
            found = self._index_of(sent).search(query, max_chars=room, min_score=MIN_SCORE, excluded={path})
        if project is not None:
            room -= sum(len(chunk.text) for chunk in found)
            excluded = {path, *(chunk.path for chunk in request.context)}
            found += project.chunks.search(query, max_chars=room, min_score=MIN_SCORE, excluded=excluded)
        found.sort(key=lambda chunk: (chunk.path, chunk.first_line))
        chosen = (*(ContextChunk(path=chunk.path, text=chunk.text) for chunk in found), *given)
        with self._lock:
            _keep(self._choices, key, chosen, most=_MAX_CHOICES)
        return chosen

    def look(self) -> None:
        """Read what was indexed since the last look, and forget what is gone."""
        try:
            stamps = {entry.name: _stamp(entry) for entry in os.scandir(self._directory) if entry.name.endswith(SUFFIX)}
        except FileNotFoundError:
            stamps = {}
        except OSError as error:
            _log.warning("repository context: cannot read %s: %s", self._directory, error.strerror)
            return
        with self._lock:
            for name in self._projects.keys() - stamps.keys():
                del self._projects[name]
            known = {name: project.stamp for name, project in self._projects.items()} | self._refused
        for name, stamp in stamps.items():
            if known.get(name) != stamp:
                self._load(name, stamp)

    def _load(self, name: str, stamp: tuple[int, int]) -> None:
        try:
            project = _read_project(self._directory / name, stamp)
        except RepositoryError as error:
            _log.warning("repository context: %s", error)
            with self._lock:
                self._refused[name] = stamp
                self._projects.pop(name, None)
            return
        _log.info("repository context: %s, %d files", project.root, len(project.chunks.paths))
        with self._lock:
            self._refused.pop(name, None)
            self._projects[name] = project
            while sum(each.chunks.num_bytes for each in self._projects.values()) > self._max_bytes:
                oldest = min(self._projects, key=lambda each: self._projects[each].stamp)
                gone = self._projects.pop(oldest)
                self._refused[oldest] = gone.stamp
                _log.warning(
                    "repository context: no room for %s, whose index is the oldest; all together may take %d bytes; "
                    "raise server.repositories_bytes",
                    gone.root,
                    self._max_bytes,
                )

    def _look_again(self) -> None:
        """Look on a thread of its own, unless that was done shortly before."""
        now_s = time.monotonic()
        with self._lock:
            if self._is_looking or now_s - self._looked_s < LOOK_EVERY_S:
                return
            self._is_looking, self._looked_s = True, now_s
        threading.Thread(target=self._look_once, name="repositories", daemon=True).start()

    def _look_once(self) -> None:
        try:
            self.look()
        finally:
            with self._lock:
                self._is_looking = False

    def _project_of(self, path: str, tenant: str) -> tuple[_Project | None, str]:
        """Return the tenant's project that has a path, and the path in it; None where that is not clear."""
        with self._lock:
            own = [project for project in self._projects.values() if project.tenant == tenant]
        meant = [(project, inner) for project in own if path and (inner := project.path_within(path)) is not None]
        if path.startswith("/"):  # of a project within another one, the inner
            meant = sorted(meant, key=lambda pair: len(pair[0].root))[-1:]
        return meant[0] if len(meant) == 1 else (None, path)

    def _index_of(self, sent: tuple[ContextChunk, ...]) -> RepositoryIndex:
        """Return the index of files that a client sent along."""
        key = _digest(_texts(sent))
        with self._lock:
            if key in self._sent:
                self._sent.move_to_end(key)
                return self._sent[key]
        index = RepositoryIndex((chunk.path, chunk.text) for chunk in sent)
        with self._lock:
            _keep(self._sent, key, index, most=_MAX_SENT)
        return index


def around_cursor(before: str, after: str) -> str:
    """Return the lines around a cursor that say what is being written, by edges that stand still while it is."""
    above = before.split("\n")[:-1]
    above = above[: len(above) // QUERY_STEP_LINES * QUERY_STEP_LINES]
    below = after.split("\n")[1:]
    below = below[len(below) % QUERY_STEP_LINES :]
    return "\n".join([*above[-QUERY_LINES_ABOVE:], *below[:QUERY_LINES_BELOW]])


def _is_file(chunk: ContextChunk) -> bool:
    return chunk.text.count("\n") > MAX_GIVEN_LINES


def _read_project(place: Path, stamp: tuple[int, int]) -> _Project:
    snapshot = read_snapshot(place)
    index = RepositoryIndex((file.path, file.text) for file in snapshot.files)
    folders = frozenset(str(PurePosixPath(file.path).parent) for file in snapshot.files) - {"."}
    return _Project(snapshot.tenant, snapshot.root, index, folders, stamp)


def _stamp(entry: "os.DirEntry[str]") -> tuple[int, int]:
    status = entry.stat()
    return status.st_mtime_ns, status.st_size


def _texts(chunks: Iterable[ContextChunk]) -> Iterator[str]:
    for chunk in chunks:
        yield chunk.path
        yield chunk.text


def _digest(texts: Iterable[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def _keep(kept: "OrderedDict[bytes, Value]", key: bytes, value: Value, *, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
