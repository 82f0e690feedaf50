"""`cloudcomplete serve`: load a model and serve completions until told to stop."""

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Event

NAME = "serve"
SUMMARY = "serve completions over gRPC"
DESCRIPTION = (
    "Serve completions over gRPC. The port opens at once; health says SERVING when the model is loaded and warm. "
    "SIGTERM or SIGINT lets running requests end and leaves with code 0; a second one leaves at once."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", type=Path, help="model directory; default: the starter model"
    )
    parser.add_argument("--config", metavar="F", type=Path, help="TOML file: [engine], [server], [cache]")
    parser.add_argument("--host", help="address to listen on; default: 127.0.0.1")
    parser.add_argument("--grpc-port", metavar="N", type=int, help="port to listen on; 0: a free one; default: 50051")
    parser.add_argument(
        "--replicas", metavar="N", type=int, help="separate engines, a session stays with one; default: 1"
    )
    parser.add_argument("--port-file", metavar="F", type=Path, help="write the port to this file once it is open")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override one setting; may be repeated"
    )
    parser.add_argument(
        "--stop-at-eof", action="store_true", help="stop when standard input closes; for programs that start a server"
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve until told to stop; raises SettingsError, EngineError, ServerError."""
    import asyncio
    import logging

    from cache.completion_cache import CompletionCache
    from cloudcomplete.config import load_settings
    from engine.types import CompletionEngine
    from server import app

    overrides = list(arguments.set)
    if arguments.host is not None:
        overrides.append(f"server.host={arguments.host}")
    if arguments.grpc_port is not None:
        overrides.append(f"server.grpc_port={arguments.grpc_port}")
    if arguments.replicas is not None:
        overrides.append(f"engine.num_replicas={arguments.replicas}")
    settings = load_settings(arguments.config, overrides)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for package in ("cache", "engine", "server"):
        logging.getLogger(package).setLevel(logging.INFO)

    def load(on_progress: app.Report) -> CompletionEngine:
        on_progress("loading JAX")
        from engine.loader import load_replicas

        return load_replicas(arguments.model, settings.engine, on_progress=on_progress)

    cache = CompletionCache(settings.cache) if settings.cache.is_enabled else None

    async def serve() -> None:
        stopping = asyncio.Event()
        if arguments.stop_at_eof:
            _stop_at_eof(asyncio.get_running_loop(), stopping)
        await app.run(
            settings.server,
            load,
            report=_report,
            port_file=arguments.port_file,
            stopping=stopping,
            cache=cache,
        )

    asyncio.run(serve())
    if any(thread.name == app.LOADING_THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(0)  # stopped while compiling: that thread cannot be interrupted, and nothing waits for it


def _report(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # who read our lines has left, which is no reason to stop serving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop_at_eof(loop: "AbstractEventLoop", stopping: "Event") -> None:
    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        loop.call_soon_threadsafe(stopping.set)

    threading.Thread(target=wait, name="stop-at-eof", daemon=True).start()
