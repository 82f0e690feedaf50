"""Errors of the command line; each becomes one line on standard error and exit code 1.

CommandError
├── SettingsError      a configuration file or a `--set` that cannot be used
├── SourceFileError    the file to complete, or the place in it, does not exist or is no text
└── OwnServerError     the server that a command started for itself did not come up
"""


class CommandError(Exception):
    """Base of everything a command raises on purpose."""


class SettingsError(CommandError):
    """A configuration file or a `--set` that cannot be used."""


class SourceFileError(CommandError):
    """The file to complete, or the place in it, does not exist or is no text."""


class OwnServerError(CommandError):
    """The server that a command started for itself did not come up."""
