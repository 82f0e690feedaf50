"""The server as a whole: `build` makes the object graph, `run` is its life from the open port to the exit code.

The port opens at once, so that clients and health checks get an answer while the engine is loading; health says
NOT_SERVING and requests are refused with UNAVAILABLE until the engine is warm. The engine comes from a blocking
function of the caller's: this module knows no model.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cache.completion_cache import CompletionCache
from engine.types import CompletionEngine
from server.admission import Admission
from server.answers import Answers
from server.completer import Completer
from server.config import ServerConfig
from server.errors import EngineLostError, PredictorError, StartError
from server.feedback import PREDICTOR_NAME, Feedback
from server.grpc_service import GrpcService
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.predictor import Predictor
from server.repositories import Repositories
from server.request_log import RequestLog
from server.session_service import SessionService
from server.sessions import Sessions
from server.wire import SERVICE_NAME

Report = Callable[[str], None]
"""Takes one line for the person who started the server."""
Beside = Callable[["App"], AbstractContextManager[Any]]
"""What accompanies a server from when it serves until it drains, such as a controller of its replicas."""
LoadEngine = Callable[[Report], CompletionEngine]
"""Loads, compiles and warms an engine; blocks for seconds, reports its progress, raises EngineError."""

LOADING_THREAD = "load-engine"
WATCH_S = 0.5
"""How often the engine, and the parts that the server can do without, are looked after."""
CACHE_NAME, FEEDBACK_NAME = f"{SERVICE_NAME}/cache", f"{SERVICE_NAME}/feedback"
"""Services of `grpc.health.v1` that tell of such parts: NOT_SERVING while the shared store is gone, or records cannot
be written. The server as a whole serves on meanwhile."""
LAST_WORDS_S = 1.0
"""Seconds that the last status codes get to reach their clients once the engine has stopped."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class App:
    """The parts of one server that its life needs hold of."""

    config: ServerConfig
    lifecycle: Lifecycle
    admission: Admission
    sessions: Sessions
    completer: Completer
    answers: Answers
    feedback: Feedback
    predictor: Predictor
    request_log: RequestLog | None
    metrics: Metrics
    health: Any
    """`grpc_health.v1.health.aio.HealthServicer`, which its type stubs do not know."""
    grpc_server: grpc.aio.Server


async def build(config: ServerConfig, *, cache: CompletionCache | None = None) -> App:
    """Make the whole object graph: what the completer needs → completer → gRPC service, health, reflection.

    The app closes `cache` when it stops; None: no answers are kept.
    """
    lifecycle = Lifecycle()
    admission = Admission(config)
    metrics = Metrics(lifecycle, admission)
    sessions = Sessions(config)
    answers = Answers(cache, least_chars=config.session_least_chars, trim=config.trim)
    repositories = Repositories(config)
    feedback = Feedback(config, metrics, on_accept=answers.note_accept)
    predictor = load_predictor(config)
    request_log = open_request_log(config)
    completer = Completer(
        config,
        lifecycle,
        admission,
        metrics,
        sessions,
        answers,
        repositories,
        predictor=predictor,
        feedback=feedback,
        on_request=request_log.append if request_log is not None else lambda tenant, request: None,
    )
    session_service = SessionService(config, admission, completer, sessions, feedback)
    health_servicer: Any = health.aio.HealthServicer()  # type: ignore[attr-defined,unused-ignore]
    grpc_server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # else a second server on the same port would silently take half of the requests
            ("grpc.max_receive_message_length", config.max_message_bytes),
        ]
    )
    grpc_server.add_generic_rpc_handlers((GrpcService(completer, session_service, feedback).handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, grpc_server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), grpc_server)
    app = App(
        config=config,
        lifecycle=lifecycle,
        admission=admission,
        sessions=sessions,
        completer=completer,
        answers=answers,
        feedback=feedback,
        predictor=predictor,
        request_log=request_log,
        metrics=metrics,
        health=health_servicer,
        grpc_server=grpc_server,
    )
    await _set_health(app, health_pb2.HealthCheckResponse.NOT_SERVING)
    return app


async def start(app: App) -> int:
    """Open the ports and return gRPC's; raises StartError when one is taken or the host is unknown."""
    host, port = app.config.host, app.config.grpc_port
    _check_address(host, port, "choose another with --grpc-port (0 takes a free one)")
    if app.config.metrics_port:
        _check_address(host, app.config.metrics_port, "choose another with --set server.metrics_port=N (0: none)")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound_port = app.grpc_server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address}: {error}; choose another host or port") from None
    await app.grpc_server.start()
    if app.config.metrics_port:
        try:
            app.metrics.open(host, app.config.metrics_port)
        except OSError as error:  # taken since the check
            raise StartError(
                f"cannot serve metrics on {host}:{app.config.metrics_port}: {error}; choose another port"
            ) from None
    return int(bound_port)


async def open_engine(app: App, engine: CompletionEngine) -> None:
    """Serve with a warm engine from now on."""
    app.lifecycle.open(engine)
    await _set_health(app, health_pb2.HealthCheckResponse.SERVING)


async def stop(app: App, *, drain_s: float) -> bool:
    """Refuse new requests, let the running ones end for at most `drain_s`, stop; returns whether all of them ended."""
    app.lifecycle.drain()
    await app.health.enter_graceful_shutdown()
    is_drained = await app.admission.wait_idle(timeout_s=drain_s)
    engine = app.lifecycle.opened_engine
    if engine is not None:
        await asyncio.to_thread(engine.close, timeout_s=0.0)
    await app.grpc_server.stop(grace=LAST_WORDS_S)
    await asyncio.to_thread(app.metrics.close)
    await asyncio.to_thread(app.answers.close)
    await asyncio.to_thread(app.feedback.close)
    await asyncio.to_thread(save_predictor, app.predictor, app.config)
    if app.request_log is not None:
        await asyncio.to_thread(app.request_log.close)
    return is_drained


def open_request_log(config: ServerConfig) -> RequestLog | None:
    """Return the log of requests if there is to be one; raises StartError when it cannot be written."""
    if not config.request_log:
        return None
    path = Path(config.request_log).expanduser()
    try:
        return RequestLog(path, max_bytes=config.request_log_bytes)
    except OSError as error:
        raise StartError(
            f"server.request_log is {path}, which cannot be written ({error.strerror}); expected a file in a writable "
            "directory; choose another, or leave it empty"
        ) from None


def load_predictor(config: ServerConfig) -> Predictor:
    """Return the predictor that an earlier server has left, or a new one."""
    path = _predictor_path(config)
    if path is None or not path.exists():
        return Predictor()
    try:
        return Predictor.load(path)
    except (PredictorError, OSError) as error:
        _log.warning("%s; begun anew", error)
        return Predictor()


def save_predictor(predictor: Predictor, config: ServerConfig) -> None:
    """Leave the predictor to the next server, if it has learned anything, there is a place for it, and nobody has put
    another one there meanwhile."""
    path = _predictor_path(config)
    if path is not None and predictor.num_learned:
        try:
            if predictor.is_origin(path):
                predictor.save(path)
            else:
                _log.warning("%s is another predictor than the one this server began with; it stays", path)
        except OSError as error:
            _log.warning("cannot keep what the predictor has learned: %s", error)


def _predictor_path(config: ServerConfig) -> Path | None:
    directory = config.feedback_directory
    return Path(directory).expanduser() / PREDICTOR_NAME if directory else None


async def run(
    config: ServerConfig,
    load: LoadEngine,
    *,
    report: Report,
    port_file: Path | None = None,
    stopping: asyncio.Event | None = None,
    cache: CompletionCache | None = None,
    beside: Beside = lambda app: nullcontext(),
) -> None:
    """Serve until SIGTERM, SIGINT or `stopping`; a second signal ends the process at once.

    Returns when everything has ended well; raises StartError, EngineLostError, or what `load` raises. It can return
    while `load` still runs on its daemon thread: the caller then should leave with `os._exit`.
    """
    stopping = asyncio.Event() if stopping is None else stopping
    app = await build(config, cache=cache)
    port = await start(app)
    _handle_signals(stopping, report)
    try:
        if port_file is not None:
            _write_port(port_file, port)
        report(f"listening on {config.host}:{port}")
        if config.metrics_port:
            report(f"metrics on http://{config.host}:{config.metrics_port}/metrics")
        if await _load_and_open(app, load, report, stopping):
            report("serving")
            watching = [asyncio.create_task(_watch_engine(app.lifecycle)), asyncio.create_task(watch_parts(app))]
            with beside(app):
                await _wait_for_any(stopping, app.lifecycle.is_broken)
            for task in watching:
                task.cancel()
            report(f"draining: {app.admission.num_in_flight} in flight, at most {config.drain_s:g} s")
    finally:
        if not await stop(app, drain_s=config.drain_s):
            report(f"some requests did not end within {config.drain_s:g} s and were told so")
        if port_file is not None:
            _remove_port(port_file)
        report("stopped")
    if app.lifecycle.is_broken.is_set():
        raise EngineLostError("the engine ended by itself; see its error above; start the server again")


async def _load_and_open(app: App, load: LoadEngine, report: Report, stopping: asyncio.Event) -> bool:
    """Load on a daemon thread, which an early stop can leave behind; returns False when stopped before it was done."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[CompletionEngine] = loop.create_future()

    def progress(line: str) -> None:
        loop.call_soon_threadsafe(app.lifecycle.report_progress, line)
        report(line)

    def settle(engine: CompletionEngine | None, error: Exception | None) -> None:
        if loaded.cancelled():
            return
        if error is not None:
            loaded.set_exception(error)
        elif engine is not None:
            loaded.set_result(engine)

    def work() -> None:
        engine, failure = None, None
        try:
            engine = load(progress)
        except Exception as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, engine, failure)
        except RuntimeError:  # stopped meanwhile: the loop is closed
            _log.info("the engine was loaded after the server had stopped")

    threading.Thread(target=work, name=LOADING_THREAD, daemon=True).start()
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((loaded, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not loaded.done():
            loaded.cancel()
            return False
        await open_engine(app, loaded.result())
        return True
    finally:
        waiting.cancel()


async def _watch_engine(lifecycle: Lifecycle) -> None:
    """Notice an engine that has ended by itself even when nobody asks it anything."""
    while lifecycle.opened_engine is None or lifecycle.opened_engine.is_alive:  # noqa: ASYNC110 - it is a thread
        await asyncio.sleep(WATCH_S)
    lifecycle.is_broken.set()


async def watch_parts(app: App, *, every_s: float = WATCH_S) -> None:
    """Tell health checks of parts that the server can do without, and log what is wrong with them, for ever."""
    problems = dict.fromkeys((CACHE_NAME, FEEDBACK_NAME), "")
    for name in problems:
        await app.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    while True:
        for name, problem in ((CACHE_NAME, app.answers.health), (FEEDBACK_NAME, app.feedback.health)):
            if bool(problem) != bool(problems[name]):
                await app.health.set(
                    name, getattr(health_pb2.HealthCheckResponse, "NOT_SERVING" if problem else "SERVING")
                )
                _log.warning("%s: %s", name, problem or "all is well again")
            problems[name] = problem
            app.metrics.set_degraded(name.rpartition("/")[2], is_degraded=bool(problem))
        await asyncio.sleep(every_s)


async def _wait_for_any(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _set_health(app: App, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
    for service in ("", SERVICE_NAME):
        await app.health.set(service, status)


def _handle_signals(stopping: asyncio.Event, report: Report) -> None:
    def on_signal(number: int) -> None:
        if stopping.is_set():
            report(f"second signal: leaving at once with code {128 + number}")
            os._exit(128 + number)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _check_address(host: str, port: int, remedy: str) -> None:
    """Bind and release, because gRPC's own error does not say what is wrong."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"cannot resolve the host {host!r}: {error}; expected an address of this machine") from None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as error:
                raise StartError(
                    f"cannot listen on {host}:{port}: {error.strerror or error}; expected a free port of this machine; "
                    f"stop what uses it, or {remedy}"
                ) from None


def _write_port(path: Path, port: int) -> None:
    """Write the port so that a reader sees the whole number or no file."""
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_text(f"{port}\n")
        aside.replace(path)
    except OSError as error:
        raise StartError(f"cannot write the port to {path}: {error.strerror}; expected a writable place") from None


def _remove_port(path: Path) -> None:
    path.unlink(missing_ok=True)
