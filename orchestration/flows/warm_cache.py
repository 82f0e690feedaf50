"""Flow `warm-cache`: projects are indexed, programs compiled, and yesterday's places asked before anybody asks again.

What is kept outside a server's memory stays warm: indexes, compiled programs, the shared tier and the snapshots of
similar places. With `server` a running one is warmed instead, its memory too.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import prefect

from orchestration.flows.errors import FlowError, FlowInputError
from orchestration.flows.steps import show_plot, show_table, step
from server import plots
from server.client import Client
from server.config import ServerConfig
from server.errors import RepositoryError, RequestFailedError, UnavailableError
from server.repository_snapshot import read_snapshot, snapshot_path, take_snapshot, write_snapshot
from server.request_log import LoggedRequest, read_request_log

_AT_ONCE = 4
_START_S = 900.0
_STOP_S = 30.0


@prefect.flow(name="warm-cache")
async def warm_cache(
    repositories: list[str] | None = None,
    log: str = "",
    server: str = "",
    model: str = "",
    config: str = "",
    tenant: str = "",
    most: int = 1000,
    run_key: str = "",
) -> dict[str, Any]:
    """Index `repositories` (directories), and ask the newest `most` different requests of `log` again.

    They are asked of `server` (HOST:PORT); without one a server is started on `model` with the TOML file `config`,
    which compiles its programs, and is stopped afterwards. `log` is what `server.request_log` named; requests of other
    tenants than `tenant` are left out. Steps with the same `run_key` and inputs are not run again. Raises FlowError,
    RepositoryError.
    """
    rows = [await index_repository(directory, tenant, run_key=run_key) for directory in repositories or []]
    if rows:
        await show_table("indexed-projects", rows, title="projects that completions know")
    asked: dict[str, Any] = {}
    if log or not server:
        asked = await ask_again(log, server, model, config, tenant, most, run_key=run_key)
        await show_table("warmed-answers", [asked], title="requests asked again, by where their answers came from")
        sources = {key.removeprefix("from_"): count for key, count in asked.items() if key.startswith("from_")}
        drawn = plots.stacked_bars("Where answers came from", {"asked again": sources}, x_label="share of requests")
        await show_plot("warmed-sources", drawn)
    return {"projects": len(rows), "files": sum(row["files"] for row in rows), **asked}


@step(timeout_s=1800, is_kept=True)
def index_repository(directory: str, tenant: str, *, run_key: str) -> dict[str, Any]:
    """Bring a project's index up to date."""
    del run_key
    root = Path(directory).resolve()
    if not root.is_dir():
        raise FlowInputError(f"{directory} is no directory; expected a project's; correct `repositories`")
    place = snapshot_path(ServerConfig().resolved_repository_directory, tenant=tenant, root=root)
    try:
        before = read_snapshot(place) if place.exists() else None
    except RepositoryError:  # damaged, or of another version: read everything
        before = None
    snapshot, changes = take_snapshot(root, tenant=tenant, before=before)
    num_bytes = write_snapshot(place, snapshot)
    return {"project": str(root), "files": len(snapshot.files), "read": changes.num_read, "index_bytes": num_bytes}


@step(timeout_s=4 * 3600, is_heavy=True, is_kept=True)
def ask_again(
    log: str, server: str, model: str, config: str, tenant: str, most: int, *, run_key: str
) -> dict[str, Any]:
    """Ask the newest different requests of a log; returns how many answers came from where."""
    del run_key
    requests = newest_requests(Path(log), tenant=tenant, most=most) if log else []
    began_s = time.monotonic()
    with _server(server, model, config) as address:
        ready_s = time.monotonic() - began_s
        counts = ask(address, requests)
    return {
        "requests": len(requests),
        "start_s": round(ready_s, 1),
        "seconds": round(time.monotonic() - began_s, 1),
        **{f"from_{source}": count for source, count in sorted(counts.items())},
    }


def newest_requests(log: Path, *, tenant: str, most: int) -> list[LoggedRequest]:
    """Return a tenant's newest different requests, the oldest of them first; raises FlowInputError without a log."""
    if not log.is_file():
        raise FlowInputError(
            f"there is no log of requests {log}; expected the file that server.request_log names; "
            "start servers with --set server.request_log=FILE, or leave `log` away"
        )
    different: dict[bytes, LoggedRequest] = {}
    for record in read_request_log(log):
        if record.tenant == tenant:
            place = msgspec.structs.replace(record.request, request_id="", session_id="", is_fresh=False)
            key = msgspec.msgpack.encode(place)
            different.pop(key, None)
            different[key] = LoggedRequest(tenant=tenant, request=place)
    return list(different.values())[-most:]


def ask(address: str, requests: list[LoggedRequest]) -> dict[str, int]:
    """Ask requests, a few at once, and count the sources of their answers; one that fails counts as `failed`."""

    def one(record: LoggedRequest) -> str:
        request = record.request
        options = {name: getattr(request.sampling, name) for name in request.sampling.__struct_fields__}
        try:
            done = client.complete(
                request.before, request.after, path=request.path, language=request.language, context=request.context,
                **options,
            )  # fmt: skip
        except UnavailableError:
            raise
        except RequestFailedError:
            return "failed"
        return done.source

    tenant = requests[0].tenant if requests else ""
    with Client(address, tenant=tenant, is_background=True) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        return Counter(pool.map(one, requests))


@contextmanager
def _server(address: str, model: str, config: str) -> Iterator[str]:
    """Give the address of a server that serves: the one named, or one that ends with the block and keeps its caches."""
    if address:
        yield address
        return
    command = [sys.executable, "-P", "-m", "cloudcomplete", "serve", *([model] if model else [])]
    command += ["--config", config] if config else []
    with tempfile.TemporaryDirectory(prefix="cloudcomplete-") as folder:
        port_file, said = Path(folder) / "port", Path(folder) / "said"
        command += ["--host", "127.0.0.1", "--grpc-port", "0", "--port-file", str(port_file), "--stop-at-eof"]
        command += ["--set", "server.request_log="]  # what is asked again is no news
        with said.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        try:
            yield _wait_until_serving(process, port_file, said)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _wait_until_serving(process: "subprocess.Popen[bytes]", port_file: Path, said: Path) -> str:
    deadline_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        if port_file.exists() and (text := port_file.read_text().strip()):
            address = f"127.0.0.1:{text}"
            with Client(address) as client:
                if client.is_serving():
                    return address
        time.sleep(0.1)
    last = (said.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
    raise FlowError(
        f"the server to be warmed did not come up; its last line: {last}; expected it within {_START_S:.0f} s; "
        "start `cloudcomplete serve` with the same model and configuration to see why"
    )
