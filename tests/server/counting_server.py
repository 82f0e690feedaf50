"""`cloudcomplete serve` on the counting engine, for tests of processes. Run by its path, with the options of `serve`.

The environment says what loading does: COUNTING_LOAD_S seconds of work, COUNTING_LOAD_ERROR an error instead of an
engine; COUNTING_GATED keeps the engine from ever making a step; COUNTING_DIES lets it end by itself.
"""

import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cloudcomplete.cli import main
from engine.errors import WeightsError
from tests.server.counting_engine import CountingEngine


def load_engine(model: Path | None, config: Any, *, on_progress: Callable[[str], None]) -> CountingEngine:
    """Stand in for `engine.loader.load_engine`, `load_leader` and `load_replicas`."""
    on_progress("learning to count")
    time.sleep(float(os.environ.get("COUNTING_LOAD_S", "0")))
    if "COUNTING_LOAD_ERROR" in os.environ:
        raise WeightsError(os.environ["COUNTING_LOAD_ERROR"])
    engine = CountingEngine(is_gated="COUNTING_GATED" in os.environ)
    if "COUNTING_DIES" in os.environ:
        engine.close(timeout_s=0)
    return engine


if __name__ == "__main__":
    loader = types.ModuleType("engine.loader")
    loader.load_engine = loader.load_leader = loader.load_replicas = load_engine  # type: ignore[attr-defined]
    sys.modules["engine.loader"] = loader
    main(
        [
            "serve",
            "--set",
            "cache.shared=none",
            "--set",
            "cache.snapshot_s=0",
            "--set",
            "server.trim=off",
            *sys.argv[1:],
        ]
    )
