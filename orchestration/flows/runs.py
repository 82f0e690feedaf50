"""Runs flows, plainly, embedded or against Prefect's server, and serves them by schedule.

Prefect is loaded here only when it is needed.
"""

import asyncio
import atexit
import contextlib
import inspect
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from orchestration.flows.errors import FlowInputError, PrefectServerError
from orchestration.flows.prefect_home import prepare
from orchestration.flows.prefect_server import is_answering, loopback_server
from orchestration.flows.registry import entry_of, load_flow

_IS_UNREACHABLE = re.compile(r"Failed to reach API")

DEPLOYMENT = "cloudcomplete"
"""What a served flow is called beside its own name: `nightly/cloudcomplete`."""


def run_flow(name: str, words: Sequence[str], *, api_url: str = "", is_plain: bool = False) -> Any:
    """Run a flow with parameters given as `key=value` and return what it returns.

    `api_url` (or PREFECT_API_URL) names a server; without one Prefect runs embedded, and `is_plain` does without it.
    Raises FlowInputError, PrefectServerError, or what the flow raises.
    """
    entry_of(name)
    home = prepare()
    api_url = api_url or os.environ.get("PREFECT_API_URL", "")
    if api_url and not is_plain and not is_answering(api_url):
        raise PrefectServerError(
            f"no Prefect server answers at {api_url}; expected one there; start it with `cloudcomplete flows serve` or "
            "`prefect server start`, or leave --api and PREFECT_API_URL away to run embedded"
        )
    flow = load_flow(name)
    parameters = read_parameters(name, flow.fn, words)
    if is_plain:
        return asyncio.run(flow.fn(**parameters))
    if not api_url:
        embedded = contextlib.ExitStack()
        api_url = embedded.enter_context(loopback_server(home, is_embedded=True)).api_url
        atexit.register(embedded.close)  # until then Prefect's threads have to tell it something
    with _explained(name, api_url), _server_at(api_url):
        return asyncio.run(flow(**parameters))


def serve_flows(
    chosen: Mapping[str, Sequence[str]], *, crons: Mapping[str, str], api_url: str = "", port: int = 0
) -> None:
    """Run flows by schedule, and when asked, until SIGTERM or SIGINT; a server on loopback is started if none is named.

    `chosen` are names and their `key=value` parameters; `crons` replace the registry's schedules.
    """
    for name in [*chosen, *crons]:
        entry_of(name)
    home = prepare()
    api_url = api_url or os.environ.get("PREFECT_API_URL", "")
    with contextlib.ExitStack() as exits:
        if not api_url:
            api_url = exits.enter_context(loopback_server(home, port=port, has_ui=True)).api_url
        elif not is_answering(api_url):
            raise PrefectServerError(
                f"no Prefect server answers at {api_url}; expected one there; start it with `prefect server start`, or "
                "leave --api and PREFECT_API_URL away to have one started"
            )
        os.environ["PREFECT_API_URL"] = api_url
        exits.enter_context(_explained("serve", api_url))
        exits.enter_context(_server_at(api_url))
        _serve(chosen, crons, api_url)


def read_parameters(name: str, function: Any, words: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` words into what a flow takes; raises FlowInputError."""
    signature = inspect.signature(function, eval_str=True)
    parameters: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in signature.parameters:
            raise FlowInputError(f"{name} got {word!r}; expected key=value of: {_takes(signature)}")
        wanted = signature.parameters[key].annotation
        try:
            value = [part for part in text.split(",") if part] if wanted in (list[str], list[str] | None) else text
            parameters[key] = msgspec.convert(value, wanted, strict=False)
        except msgspec.ValidationError as error:
            raise FlowInputError(f"{name}: {key}={text}: {error}") from None
    missing = [
        key for key, entry in signature.parameters.items() if entry.default is entry.empty and key not in parameters
    ]
    if missing:
        raise FlowInputError(f"{name} needs {', '.join(missing)}; expected key=value of: {_takes(signature)}")
    return parameters


def _takes(signature: inspect.Signature) -> str:
    return ", ".join(
        key if entry.default is entry.empty else f"{key} ({entry.default!r})"
        for key, entry in signature.parameters.items()
    )


def _serve(chosen: Mapping[str, Sequence[str]], crons: Mapping[str, str], api_url: str) -> None:
    import prefect
    from prefect.types.entrypoint import EntrypointType

    deployments = []
    for name, words in chosen.items():
        flow = load_flow(name)
        parameters = read_parameters(name, flow.fn, words) if words else {}
        cron = crons.get(name, entry_of(name).cron) or None
        try:
            deployments.append(
                flow.to_deployment(
                    DEPLOYMENT,
                    cron=cron,
                    parameters=parameters,
                    entrypoint_type=EntrypointType.MODULE_PATH,
                    concurrency_limit=1,  # a night that takes longer than a day is not joined by the next one
                )
            )
        except ValueError:
            raise FlowInputError(f"{name}: {cron!r} is no cron schedule; expected such as '0 3 * * *'") from None
    print(f"serving {', '.join(chosen)} at {api_url}", flush=True)  # noqa: T201
    # On SIGTERM Prefect's runner leaves a coroutine behind; it stops all the same.
    warnings.filterwarnings("ignore", message="coroutine 'Runner.astop' was never awaited")
    prefect.serve(*deployments, print_starting_message=False)


@contextlib.contextmanager
def _server_at(api_url: str) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api_url}):
        yield


@contextlib.contextmanager
def _explained(name: str, api_url: str) -> Iterator[None]:
    """Turn what Prefect's client raises when its server is gone into an error that says what to do."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield
    except (httpx.TransportError, PrefectHTTPStatusError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_about_the_server(error):
            raise
        raise PrefectServerError(
            f"Prefect's server at {api_url} stopped answering in the middle of {name} "
            f"({type(error).__name__}); expected it until the end; start it and run the same command again: "
            "steps that were finished are not run again"
        ) from error


def _is_about_the_server(error: BaseException | None) -> bool:
    import httpx

    while error is not None:
        if isinstance(error, httpx.TransportError) or _IS_UNREACHABLE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
