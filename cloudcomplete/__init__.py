"""LLM-CloudComplete: a self-hosted code-completion service. This is the roof: the public API and the command line.

    from cloudcomplete import Client
    with Client("127.0.0.1:50051") as client:
        print(client.complete("def add(a, b):\\n    return ").text)

Importing this package loads neither JAX nor gRPC; each name below loads what it needs when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.loader import load_engine
    from engine.types import ContextChunk
    from server.client import AsyncClient, Client
    from server.errors import BusyError, DeadlineError, InvalidRequestError, RequestFailedError, UnavailableError
    from server.types import Completion

__all__ = [
    "AsyncClient",
    "BusyError",
    "Client",
    "Completion",
    "ContextChunk",
    "DeadlineError",
    "InvalidRequestError",
    "RequestFailedError",
    "UnavailableError",
    "load_engine",
]

_HOMES = {
    "AsyncClient": "server.client",
    "BusyError": "server.errors",
    "Client": "server.client",
    "Completion": "server.types",
    "ContextChunk": "engine.types",
    "DeadlineError": "server.errors",
    "InvalidRequestError": "server.errors",
    "RequestFailedError": "server.errors",
    "UnavailableError": "server.errors",
    "load_engine": "engine.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cloudcomplete' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
