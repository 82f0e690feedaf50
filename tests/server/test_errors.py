"""The table of errors and gRPC codes."""

import grpc
import pytest

from engine import errors as engine_errors
from server import errors
from server.errors import grpc_code


def all_below(root: type[Exception]) -> list[type[Exception]]:
    return [error for child in root.__subclasses__() for error in (child, *all_below(child))]


@pytest.mark.parametrize("error", all_below(errors.RequestFailedError))
def test_each_error_of_a_request_has_a_code_of_its_own(error: type[Exception]) -> None:
    codes = [errors.GRPC_CODES[other] for other in all_below(errors.RequestFailedError)]
    assert codes.count(errors.GRPC_CODES[error]) == 1


def test_every_code_exists_in_grpc() -> None:
    assert {grpc.StatusCode[code] for code in errors.GRPC_CODES.values()}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (engine_errors.RequestError("no"), "INVALID_ARGUMENT"),
        (engine_errors.QueueFullError("full", retry_after_s=1.0), "RESOURCE_EXHAUSTED"),
        (engine_errors.EngineClosedError("closed"), "UNAVAILABLE"),
        (engine_errors.StepError("device"), "INTERNAL"),
        (KeyError("defect"), "INTERNAL"),
    ],
)
def test_the_engines_errors_and_defects_have_the_code_of_their_nearest_ancestor(error: Exception, code: str) -> None:
    assert grpc_code(error) == code


def test_the_tree_in_the_docstring_names_every_error() -> None:
    for error in all_below(errors.ServerError):
        assert error.__name__ in (errors.__doc__ or "")
