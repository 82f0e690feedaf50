"""Where Prefect keeps its state on this machine, set before it is imported. Knows no flow."""

import importlib.util
import os
from pathlib import Path

from orchestration.flows.errors import PrefectServerError


def prepare() -> Path:
    """Set what Prefect reads from the environment when it is imported; return its home.

    Nothing is sent to anybody. Who has set PREFECT_HOME keeps it. Raises PrefectServerError where Prefect is not
    installed.
    """
    if importlib.util.find_spec("prefect") is None:
        raise PrefectServerError(
            "flows need Prefect, which is not installed; expected it beside cloudcomplete; "
            "install it with `pip install 'cloudcomplete[flows]'`"
        )
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.setdefault("PREFECT_HOME", str(base / "cloudcomplete" / "prefect")))
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # a busy machine needs long
    os.environ.setdefault("PREFECT_SERVER_UI_ENABLED", "false")  # of embedded servers, which nobody sees
    # Else a server that is killed takes with it who held a slot of a limit, and the slot is never free again.
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    )
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    return home
