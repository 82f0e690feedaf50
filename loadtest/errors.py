"""Errors of the load test's rooms; the command line makes each one line on standard error and exit code 1.

LoadtestError
├── CountersError      a server's metrics cannot be read, or do not tell what it computed
├── DialectError       a dialect does not exist, or no server that speaks it is there
├── ReportError        a file of results cannot be read or written
├── RowsError          a file of rows to evaluate cannot be read, or no row in it can be asked
├── RunError           a run against a server ended early, or nothing in it was answered
└── TraceError         a recording of typing cannot be replayed
"""


class LoadtestError(Exception):
    """Base of everything the load test raises on purpose."""


class CountersError(LoadtestError):
    """A server's metrics cannot be read, or do not tell what it computed."""


class DialectError(LoadtestError):
    """A dialect does not exist, or no server that speaks it is there."""


class ReportError(LoadtestError):
    """A file of results cannot be read or written."""


class RowsError(LoadtestError):
    """A file of rows to evaluate cannot be read, or no row in it can be asked."""


class RunError(LoadtestError):
    """A run against a server ended early, or nothing in it was answered."""


class TraceError(LoadtestError):
    """A recording of typing cannot be replayed."""
