"""Errors of the server and of its client, and the one table that maps errors to gRPC codes.

    ServerError
    ├── StartError                 the server cannot start: its port is taken, its host unknown
    ├── EngineLostError            the engine ended by itself while the server was serving
    ├── AddressError               what a client was given is no server address
    ├── RepositoryError            a project's source cannot be read, or its index not read or written
    ├── PredictorError             a saved predictor cannot be read
    └── RequestFailedError         one request got no, or not all of its, answer; others are not touched
        ├── InvalidRequestError        it can never be served as asked
        ├── BusyError                  too many requests at once; carries `retry_after_s`
        ├── UnavailableError           the server is starting, stopping or not there
        ├── DeadlineError              its time ran out
        ├── RequestCancelledError      somebody cancelled it
        └── CompletionFailedError      the fault is on the server's side

The same classes appear on both ends of the wire: the server raises them, the table turns them into a code, and the
client turns the code back. Every message says what, expected, got and the remedy.
"""

from engine import errors as engine_errors


class ServerError(Exception):
    """Base of everything the server and its client raise on purpose."""


class StartError(ServerError):
    """The server cannot start."""


class EngineLostError(ServerError):
    """The engine ended by itself while the server was serving."""


class AddressError(ServerError, ValueError):
    """What the client was given is no server address."""


class RepositoryError(ServerError):
    """A project's source cannot be read, or its index cannot be read or written."""


class PredictorError(ServerError):
    """A file is no saved predictor of this version."""


class RequestFailedError(ServerError):
    """One request got no answer, or only a part of it."""


class InvalidRequestError(RequestFailedError):
    """The request can never be served as asked."""


class BusyError(RequestFailedError):
    """No room for one more request. `retry_after_s` is a hint when to try again."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(RequestFailedError):
    """The server is starting, stopping or not there."""


class DeadlineError(RequestFailedError):
    """The request's time ran out."""


class RequestCancelledError(RequestFailedError):
    """The request was cancelled."""


class CompletionFailedError(RequestFailedError):
    """Something broke on the server's side."""


GRPC_CODES: dict[type[Exception], str] = {
    InvalidRequestError: "INVALID_ARGUMENT",
    BusyError: "RESOURCE_EXHAUSTED",
    UnavailableError: "UNAVAILABLE",
    DeadlineError: "DEADLINE_EXCEEDED",
    RequestCancelledError: "CANCELLED",
    CompletionFailedError: "INTERNAL",
    engine_errors.RequestError: "INVALID_ARGUMENT",
    engine_errors.QueueFullError: "RESOURCE_EXHAUSTED",
    engine_errors.EngineClosedError: "UNAVAILABLE",
    engine_errors.EngineError: "INTERNAL",
    Exception: "INTERNAL",
}
"""Error class to the name of its gRPC status code; a class that is not listed has its nearest listed ancestor's."""


def grpc_code(error: Exception) -> str:
    """Return the name of the gRPC status code of an error."""
    return next(GRPC_CODES[ancestor] for ancestor in type(error).__mro__ if ancestor in GRPC_CODES)
