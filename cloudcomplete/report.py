"""Files of results: the JSON that `--json OUT` writes."""

from pathlib import Path
from typing import Any

import msgspec

from cloudcomplete.errors import ReportError


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; raises ReportError."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    except OSError as error:
        raise ReportError(f"cannot write the results to {path}: {error.strerror}; expected a writable place") from None


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote; raises ReportError."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ReportError(f"cannot read the results in {path}: {error.strerror}; expected a JSON file") from None
    except msgspec.DecodeError as error:
        raise ReportError(f"{path} is not JSON: {error}; expected a file written with --json") from None
