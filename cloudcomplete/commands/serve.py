"""`cloudcomplete serve`: load a model and serve completions until told to stop."""

import argparse
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cloudcomplete.errors import SettingsError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Event
    from contextlib import AbstractContextManager

    from engine.config import EngineConfig
    from engine.group import Membership
    from orchestration.allocator.config import AllocatorConfig

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
    parser.add_argument("--stages", metavar="N", type=int, help="parts of the layers, each on its devices; default: 1")
    parser.add_argument("--tensor", metavar="N", type=int, help="devices that share each layer; default: 1")
    parser.add_argument(
        "--replicas", metavar="N", type=int, help="separate engines, a session stays with one; default: 1"
    )
    parser.add_argument(
        "--allocator",
        choices=("off", "watch", "shadow", "learned"),
        help="who changes the number of replicas while serving: nobody; nobody, but decisions are logged; the "
        "baseline; the learned policy; default: off; bounds and more are settings, allocator.NAME",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="processes that run one mesh; without --process they are started here, and again when one is lost",
    )
    parser.add_argument("--process", metavar="I", type=int, help="run as this one of them; 0 leads and serves")
    parser.add_argument("--coordinator", metavar="HOST:PORT", default="", help="of process 0; PORT + 1 is used too")
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
    from contextlib import nullcontext

    if arguments.processes > 1 and arguments.process is None:
        from cloudcomplete.supervisor import Supervisor

        command = [sys.executable, "-m", "cloudcomplete", *sys.argv[1:]]
        sys.exit(Supervisor(command, arguments.processes, report=_report).run())

    from cache.completion_cache import CompletionCache
    from cloudcomplete.config import load_settings
    from engine.types import CompletionEngine
    from server import app

    overrides = list(arguments.set)
    if arguments.host is not None:
        overrides.append(f"server.host={arguments.host}")
    if arguments.grpc_port is not None:
        overrides.append(f"server.grpc_port={arguments.grpc_port}")
    numbers = {name: getattr(arguments, name) for name in ("stages", "tensor", "replicas")}
    overrides += [f"engine.num_{name}={number}" for name, number in numbers.items() if number is not None]
    if arguments.allocator is not None:
        overrides.append(f"allocator.mode={arguments.allocator}")
    settings = load_settings(arguments.config, overrides)
    has_allocator = settings.allocator.mode != "off"
    if has_allocator:
        _check_allocator(settings.allocator, is_group=arguments.processes > 1)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for package in ("cache", "engine", "orchestration", "server"):
        logging.getLogger(package).setLevel(logging.INFO)

    member = None
    if arguments.processes > 1:
        from engine.group import membership

        member = membership(arguments.processes, arguments.process, arguments.coordinator)
    if member is not None and member.process > 0:
        _follow(member, arguments.model, settings.engine)

    def load(on_progress: app.Report) -> CompletionEngine:
        on_progress("loading JAX")
        if has_allocator:
            import orchestration.allocator.loop  # noqa: F401, so that its seconds are spent before serving
        from engine.loader import load_leader, load_replicas

        if member is not None:
            return load_leader(member, arguments.model, settings.engine, on_progress=on_progress)
        return load_replicas(arguments.model, settings.engine, on_progress=on_progress)

    cache = CompletionCache(settings.cache) if settings.cache.is_enabled else None

    def beside(serving: app.App) -> "AbstractContextManager[Any]":
        if not has_allocator:
            return nullcontext()
        from orchestration.allocator.loop import accompany

        return accompany(settings.allocator, serving)

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
            beside=beside,
        )

    try:
        asyncio.run(serve())
    except Exception as error:
        if member is None:
            raise
        _refuse(error)
    if member is not None:
        sys.stdout.flush()
        os._exit(0)  # JAX's runtime would wait for the followers, who wait for us
    if any(thread.name == app.LOADING_THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(0)  # stopped while compiling: that thread cannot be interrupted, and nothing waits for it


def _check_allocator(config: "AllocatorConfig", *, is_group: bool) -> None:
    """Raise SettingsError for what would only be noticed when the model is loaded."""
    problem = config.problem
    if is_group:
        problem = (
            'allocator.mode is not "off" in a group of processes, which is one replica; expected "off"; scale groups '
            "with `cloudcomplete allocator scaler`"
        )
    if problem:
        raise SettingsError(problem)


def _follow(member: "Membership", model: Path | None, config: "EngineConfig") -> NoReturn:
    from engine.errors import GroupError, StepError
    from engine.group import die
    from engine.loader import follow

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an orderly way out would wait for the other processes
    joined = False

    def on_progress(line: str) -> None:
        nonlocal joined
        joined = True
        _report(f"process {member.process}: {line}")

    try:
        follow(member, model, config, on_progress=on_progress)
    except Exception as error:
        if not joined:
            raise
        if isinstance(error, (GroupError, StepError)):
            die(str(error))
        _refuse(error)
    raise AssertionError("a follower follows until its leader is gone")


def _refuse(error: Exception) -> NoReturn:
    """Leave with an error's message, as `main` does, but without JAX's runtime waiting for the other processes."""
    from engine.errors import EngineError
    from server.errors import ServerError

    if isinstance(error, (EngineError, ServerError)):
        print(f"cloudcomplete: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    os._exit(1)


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
