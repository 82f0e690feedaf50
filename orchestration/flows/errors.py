"""Errors of flows.

    FlowError
    ├── FlowInputError     a flow that does not exist, or a parameter that it does not take
    └── PrefectServerError   Prefect, or its server, is not there, or went away in the middle of a flow

Every message says what, expected, got, and the remedy.
"""


class FlowError(Exception):
    """Base of everything that flows raise on purpose."""


class FlowInputError(FlowError):
    """A flow that does not exist, or a parameter that it does not take."""


class PrefectServerError(FlowError):
    """Prefect, or its server, is not there, or went away in the middle of a flow."""
