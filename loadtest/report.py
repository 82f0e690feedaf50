"""Reports: what a benchmark, a replay or an evaluation found, as a table for people and as JSON for programs.

`docs/results.md` documents the JSON. Knows nothing of how a figure was measured.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from loadtest.errors import ReportError
from loadtest.machine import describe_machine, describe_versions

_SHOWN_ERRORS = 5
Number = int | float | None
"""A figure; None where there was nothing to measure it from."""
Finding = Number | str
"""A figure, or a name where what was found is one."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run's outcome: the whole of what `--json` writes."""

    headline: dict[str, Finding]
    """What the run is judged by: name to number, the unit in the name."""
    rows: list[dict[str, Any]] = []
    """What the headline was made of."""
    partial: bool = False
    """Whether the run ended before its work was done; the headline is of what was done."""
    notes: list[str] = []
    """Sentences that belong to the figures."""
    command: str = ""
    """What to type to get them again."""
    measured_at: str = ""
    """When the run ended, in UTC."""
    machine: dict[str, Any] = {}
    """The machine that measured; a server may have been on another one."""
    versions: dict[str, str] = {}


def assemble(
    headline: Mapping[str, Finding],
    rows: Sequence[dict[str, Any]],
    *,
    command: str,
    notes: Sequence[str] = (),
    is_partial: bool = False,
    devices: str = "",
) -> Result:
    """Return the result of a run that has just ended on this machine; `devices` as JAX names those it used."""
    return Result(
        headline=dict(headline),
        rows=list(rows),
        partial=is_partial,
        notes=list(notes),
        command=command,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine() | ({"devices": devices} if devices else {}),
        versions=describe_versions(),
    )


def describe(result: Result) -> str:
    """Return the headline as a table, and the notes."""
    cells = {name: format_number(value) for name, value in result.headline.items()}
    name_width = max(map(len, cells), default=0)
    width = max(map(len, cells.values()), default=0)
    lines = [f"{name:<{name_width}}  {cell:>{width}}" for name, cell in cells.items()]
    if result.partial:
        lines.insert(0, "PARTIAL: the run ended early; these are the figures of what was done")
    return "\n".join([*lines, *([""] if result.notes else []), *result.notes])


def compare(left: Result, right: Result) -> str:
    """Return both headlines as a table, the ratio of B (`right`) to A, and what else is different."""
    lines = [["", "A", "B", "B/A"]]
    for name in left.headline | right.headline:
        a, b = left.headline.get(name), right.headline.get(name)
        cells = (format_number(run.headline[name]) if name in run.headline else "absent" for run in (left, right))
        lines.append([name, *cells, _ratio(a, b)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    notes = _differences(left, right)
    return "\n".join([*table, *([""] if notes else []), *notes])


def _ratio(a: Finding, b: Finding) -> str:
    if isinstance(a, str) or isinstance(b, str) or not a or b is None:
        return "-"
    return f"{b / a:.3f}"


def format_number(value: Finding) -> str:
    """Return a figure as people read it."""
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def read_result(path: Path) -> Result:
    """Read what `write_json` wrote of a result; raises ReportError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReportError(f"cannot read the results in {path}: {error.strerror}; expected a JSON file") from None
    try:
        return msgspec.json.decode(data, type=Result)
    except msgspec.ValidationError as error:
        raise ReportError(
            f"{path} holds no results: {error}; expected a file that bench, replay or evaluate wrote with --json"
        ) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReportError(f"{path} is not JSON: {error}; expected a file written with --json") from None


def check_writable(path: Path) -> None:
    """Raise ReportError when a file could not be written there: before the run that would be lost."""
    target = path.resolve()
    if target.is_dir():
        problem = "Is a directory"
    elif not target.parent.is_dir():
        problem = "Not a directory" if target.parent.exists() else "No such file or directory"
    elif not os.access(target if _is_device(target) else target.parent, os.W_OK):
        problem = "Permission denied"
    else:
        return
    raise _unwritable("the results", path, problem)


def write_json(path: Path, value: Any) -> None:
    """Write any value as indented JSON, whole or not at all; raises ReportError."""
    write_bytes(
        path, msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2) + b"\n", what="the results"
    )


def _plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's, since a run of minutes must not end at its last step."""
    import numpy as np

    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} has no place in a result")


def write_bytes(path: Path, data: bytes, *, what: str) -> None:
    """Write a file whole or not at all; raises ReportError that names `what`."""
    target = path.resolve()
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if _is_device(target):
            target.write_bytes(data)
            return
        aside.write_bytes(data)
        aside.replace(target)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise _unwritable(what, path, error.strerror) from None


def make_directory(path: Path) -> None:
    """Make a directory for files of a run, where there is none yet; raises ReportError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable("files", path, error.strerror) from None


def write_plots(directory: Path, plots: Mapping[str, bytes]) -> list[Path]:
    """Write each plot to `directory/NAME.svg`, making the directory; return the paths; raises ReportError."""
    make_directory(directory)
    paths = [directory / f"{name}.svg" for name in plots]
    for path, svg in zip(paths, plots.values(), strict=True):
        write_bytes(path, svg, what="the plot")
    return paths


def error_notes(errors: Iterable[tuple[str, str]]) -> list[str]:
    """Return a note for each of the most frequent errors, given as what they count as and what they say."""
    counts = Counter(errors)
    notes = [f"error, {what}: {count:,} x {text}" for (what, text), count in counts.most_common(_SHOWN_ERRORS)]
    if len(counts) > _SHOWN_ERRORS:
        notes.append(f"errors of {len(counts) - _SHOWN_ERRORS:,} more kinds")
    return notes


def _is_device(target: Path) -> bool:
    """Tell a terminal, a pipe or the like, which is written to and never replaced."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _unwritable(what: str, path: Path, problem: str | None) -> ReportError:
    return ReportError(f"cannot write {what} to {path}: {problem}; expected a writable place")


def _differences(left: Result, right: Result) -> list[str]:
    """Return a sentence for everything that makes the two headlines less comparable."""
    notes = [f"{side} is partial: its run ended early" for side, run in (("A", left), ("B", right)) if run.partial]
    if left.command != right.command:
        notes += [f"A: {left.command or 'command unknown'}", f"B: {right.command or 'command unknown'}"]
    for what, a, b in (("machine", left.machine, right.machine), ("version", left.versions, right.versions)):
        for name in a | b:
            if a.get(name) != b.get(name):
                notes.append(f"{what}: {name} is {a.get(name, 'unknown')} in A, {b.get(name, 'unknown')} in B")
    return notes
