"""`cloudcomplete cache`: what the completion cache keeps outside a server's memory, and forgetting it."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.config import CacheConfig
    from cache.store import Store

NAME = "cache"
SUMMARY = "show or clear what the completion cache keeps"
DESCRIPTION = (
    "stats: show what the shared store and the snapshots of similar places hold. clear: forget it, or one tenant's "
    "part of it. A running server keeps what it has in memory until it stops, and then writes its snapshots: to forget "
    "everything, clear after stopping it."
)
_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=("stats", "clear"), help="what to do")
    parser.add_argument("--tenant", metavar="T", help="with clear: only what belongs to this tenant")
    parser.add_argument("--config", metavar="F", type=Path, help="TOML file with a [cache] section")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override one setting; may be repeated"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the numbers to OUT")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """Show or clear; raises SettingsError, CacheError, ReportError."""
    from cloudcomplete.config import load_settings
    from loadtest import report

    if arguments.tenant is not None and arguments.action != "clear":
        arguments.fail("--tenant belongs to clear; stats counts all tenants together")
    config = load_settings(arguments.config, arguments.set).cache
    if arguments.json is not None:
        report.check_writable(arguments.json)
    facts = gather(config) if arguments.action == "stats" else clear(config, arguments.tenant)
    for name, value in facts.items():
        print(f"{name:<20}{value:,}" if isinstance(value, int) else f"{name:<20}{value}")
    if arguments.json is not None:
        report.write_json(arguments.json, facts)


def gather(config: "CacheConfig") -> dict[str, Any]:
    """Return what is kept, units in the names; raises CacheError."""
    from cache.snapshot import snapshots_of

    with _store(config) as store:
        size = None if store is None else store.measure()
    snapshots = [path.stat().st_size for path in snapshots_of(config.resolved_directory, None)]
    return {
        "shared": config.shared if store is None else store.place,
        "shared_entries": size.num_entries if size else 0,
        "shared_bytes": size.num_bytes if size else 0,
        "snapshots_in": str(config.resolved_directory),
        "snapshots": len(snapshots),
        "snapshot_bytes": sum(snapshots),
    }


def clear(config: "CacheConfig", tenant: str | None) -> dict[str, Any]:
    """Forget a tenant's entries, or all, and return how many; raises CacheError."""
    from cache.completion_cache import check_clearing
    from cache.snapshot import snapshots_of

    check_clearing(config, tenant)
    with _store(config) as store:
        num_entries = 0 if store is None else store.clear(tenant)
    snapshots = snapshots_of(config.resolved_directory, tenant)
    for path in snapshots:
        path.unlink(missing_ok=True)
    return {"cleared_entries": num_entries, "cleared_snapshots": len(snapshots)}


@contextlib.contextmanager
def _store(config: "CacheConfig") -> "Iterator[Store | None]":
    """Open the configured store; None where there is none, or nothing was stored in its file yet."""
    import msgspec

    from cache.completion_cache import open_store
    from cache.sqlite_store import FILE_NAME

    if config.shared == "sqlite" and not (config.resolved_directory / FILE_NAME).exists():
        yield None
        return
    store = open_store(msgspec.structs.replace(config, shared_timeout_s=_TIMEOUT_S))
    try:
        yield store
    finally:
        if store is not None:
            store.close()
