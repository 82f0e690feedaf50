"""Deployment choices of the completion cache: the [cache] section of the configuration file."""

import os
from pathlib import Path

import msgspec


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of answers, where, and for how long."""

    is_enabled: bool = True
    """Whether answers are kept at all."""
    is_shared_between_tenants: bool = False
    """Whether a tenant may be answered with what another one's request brought about."""
    memory_bytes: int = 64 * 1024 * 1024
    """Most bytes of answers in this process (tier 1); the least recently used go first."""
    similar_entries: int = 100_000
    """Most places remembered for drafts (tier 2), about 2.5 KB each; 0: no drafts from similar places."""
    similar_min_score: float = 0.5
    """Least likeness of a place whose text is tried as a draft, from 0 (anything) to 1 (the same)."""
    shared: str = "sqlite"
    """Where answers outlive the process (tier 3): "sqlite" (a file in `directory`), the address of a Redis or Valkey
    server such as "redis://127.0.0.1:6379/0", or "none"."""
    shared_bytes: int = 256 * 1024 * 1024
    """Most bytes of answers in that file; a Redis server has a bound of its own."""
    shared_timeout_s: float = 0.05
    """Seconds that a Redis server may take for a call before the cache goes on without it."""
    directory: str = ""
    """Directory of the file and of snapshots; "": cloudcomplete/completions in the user's cache directory."""
    ttl_s: float = 7 * 86_400.0
    """Seconds after which an answer is too old, in every tier."""
    snapshot_s: float = 300.0
    """Seconds between snapshots of tier 2; 0: none, it then starts empty."""
    max_waiting_writes: int = 1024
    """Answers that may wait to be written to tiers 2 and 3; more are dropped and counted."""

    def __post_init__(self) -> None:
        """Refuse values that cannot hold, with ValueError; msgspec adds the path of the section."""
        for name in ("memory_bytes", "shared_bytes", "shared_timeout_s", "ttl_s", "max_waiting_writes"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("similar_entries", "snapshot_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.similar_min_score <= 1:
            raise ValueError(f"similar_min_score is {self.similar_min_score}; expected 0 to 1")
        if self.shared not in ("sqlite", "none") and "://" not in self.shared:
            raise ValueError(f'shared is {self.shared!r}; expected "sqlite", "none" or an address with "://"')

    @property
    def resolved_directory(self) -> Path:
        """Where files belong."""
        if self.directory:
            return Path(self.directory).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudcomplete" / "completions"
