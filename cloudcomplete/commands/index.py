"""`cloudcomplete index`: read a project's source, so that servers on this machine show it to their models."""

import argparse
from pathlib import Path
from typing import Any

NAME = "index"
SUMMARY = "read a project, for completions that know its other files"
DESCRIPTION = (
    "Read the source files of the project in DIR, leaving out what its .gitignore files ignore. Servers of the same "
    "user take the index up within seconds and put the chunks most like the code around the cursor ahead of prompts, "
    "for files whose path lies in DIR or is one of the project's. Run it again after changes: it reads only those."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="the project's directory")
    parser.add_argument(
        "--tenant", metavar="T", default="", help="whose requests may see it; default: those of no tenant"
    )
    parser.add_argument("--forget", action="store_true", help="remove the project's index")
    parser.add_argument("--config", metavar="F", type=Path, help="TOML file with a [server] section")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override one setting; may be repeated"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the numbers to OUT")


def run(arguments: argparse.Namespace) -> None:
    """Index or forget; raises SettingsError, RepositoryError, ReportError."""
    from cloudcomplete.config import load_settings
    from loadtest import report

    directory = load_settings(arguments.config, arguments.set).server.resolved_repository_directory
    if arguments.json is not None:
        report.check_writable(arguments.json)
    work = forget if arguments.forget else bring_up_to_date
    facts = work(arguments.directory.absolute(), directory=directory, tenant=arguments.tenant)
    for name, value in facts.items():
        if name != "left_out":
            print(f"{name:<20}{value:,}" if isinstance(value, int) else f"{name:<20}{value}")
    for reason, count in facts.get("left_out", {}).items():
        print(f"left out            {count:,} x {reason}")
    if arguments.json is not None:
        report.write_json(arguments.json, facts)


def bring_up_to_date(root: Path, *, directory: Path, tenant: str) -> dict[str, Any]:
    """Read what changed and write the index; raises RepositoryError."""
    from server.errors import RepositoryError
    from server.repository_snapshot import read_snapshot, snapshot_path, take_snapshot, write_snapshot

    root = root.resolve()
    place = snapshot_path(directory, tenant=tenant, root=root)
    try:
        before = read_snapshot(place) if place.exists() else None
    except RepositoryError:  # damaged, or of another version: read everything
        before = None
    snapshot, changes = take_snapshot(root, tenant=tenant, before=before)
    num_bytes = write_snapshot(place, snapshot)
    return {
        "project": str(root),
        "files": len(snapshot.files),
        "new": changes.num_new,
        "changed": changes.num_changed,
        "gone": changes.num_gone,
        "same": changes.num_same,
        "read": changes.num_read,
        "index_bytes": num_bytes,
        "index": str(place),
        "left_out": changes.left_out,
    }


def forget(root: Path, *, directory: Path, tenant: str) -> dict[str, Any]:
    """Remove the index; harmless where there is none."""
    from server.repository_snapshot import snapshot_path

    place = snapshot_path(directory, tenant=tenant, root=root.resolve())
    is_there = place.exists()
    place.unlink(missing_ok=True)
    return {"project": str(root.resolve()), "forgotten": int(is_there)}
