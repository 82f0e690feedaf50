"""What the steps of all flows have in common: retries, timeouts, results that are kept, turns of heavy ones.

A step is a plain function. Called within a run of a Prefect flow it is a Prefect task; called anywhere else, as from
`flow.fn(...)`, it is the function, in a thread. Artifacts likewise: outside of a run there is nobody to show them to.
"""

import asyncio
import base64
import contextlib
import fcntl
import functools
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec
import prefect
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact
from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext

from engine.errors import EngineError
from orchestration.allocator.errors import AllocatorError
from orchestration.flows.errors import FlowError
from orchestration.flows.prefect_home import prepare

P = ParamSpec("P")
R = TypeVar("R")

_TURN_S = 0.2
"""Seconds between two looks whether a heavy step may begin."""
_NOT_RETRIED = (AllocatorError, EngineError, FlowError, ValueError, TypeError)
"""Wrong input stays wrong; what disks, networks and other processes do may pass."""
_RETRY_DELAYS_S = (1.0, 10.0)


def step(
    *, timeout_s: float, retries: int = 2, is_heavy: bool = False, is_kept: bool = False
) -> Callable[[Callable[P, R]], Callable[P, Awaitable[R]]]:
    """Make a plain function a step of flows; it runs in a thread.

    `is_kept`: the result, which has to be JSON, is kept by the step's arguments, one of which is `run_key`; a later run
    with the same ones takes it from there instead of running the step. An empty `run_key` keeps nothing.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, Awaitable[R]]:
        name = function.__name__.replace("_", "-")

        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R:
            return await asyncio.to_thread(function, *args, **kwargs)

        task = prefect.task(
            name=name,
            retries=retries,
            retry_delay_seconds=list(_RETRY_DELAYS_S[:retries]),
            retry_condition_fn=_may_pass,
            timeout_seconds=timeout_s,
            cache_policy=CacheKeyFnPolicy(cache_key_fn=_key) if is_kept else NO_CACHE,
            persist_result=is_kept,
            result_serializer="json" if is_kept else None,
            tags=["heavy"] if is_heavy else [],
        )(run)

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if FlowRunContext.get() is None:
                return await run(*args, **kwargs)
            async with heavy_turn() if is_heavy else contextlib.nullcontext():  # its time begins with its turn
                return await task(*args, **kwargs)

        return call

    return decorate


async def call_flow(flow: Any, **parameters: Any) -> Any:
    """Call a flow from a flow: as a flow of its own within a run, as a plain function else."""
    if FlowRunContext.get() is None:
        return await flow.fn(**parameters)
    return await flow(**parameters)


async def show_table(key: str, rows: Sequence[dict[str, Any]], *, title: str) -> None:
    """Show rows as an artifact of the run; keys are lower-case letters, digits and dashes."""
    if FlowRunContext.get() is not None:
        await acreate_table_artifact(table=[dict(row) for row in rows], key=key, description=title)


async def show_plot(key: str, svg: bytes) -> None:
    """Show an SVG as an artifact of the run."""
    if FlowRunContext.get() is not None:
        url = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        await acreate_image_artifact(image_url=url, key=key)


async def show_report(key: str, markdown: str) -> None:
    """Show a text as an artifact of the run."""
    if FlowRunContext.get() is not None:
        await acreate_markdown_artifact(markdown=markdown, key=key)


@contextlib.asynccontextmanager
async def heavy_turn() -> AsyncIterator[None]:
    """Wait until no other heavy step runs on this machine, whatever flow or process it belongs to.

    The lock is the kernel's and ends with its process: a run that was killed leaves nothing that the next one would
    wait for, as it would with a slot of a server that has died too.
    """
    with (prepare() / "heavy.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_TURN_S)
        yield


def _may_pass(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Tell a failure that may pass from one that will not: Prefect asks before it runs a step again."""
    del task, task_run
    return not isinstance(state.data, _NOT_RETRIED)


def _key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    if not parameters.get("run_key"):
        return None
    digest = hashlib.sha256(msgspec.json.encode(parameters, order="deterministic"))
    return f"{context.task.name}-{digest.hexdigest()}"
