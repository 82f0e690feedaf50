"""Runs commands in this process, as `main` gets them."""

import pytest

from cloudcomplete.cli import main


class Outcome:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Shell:
    """`shell("info", "--json", path)` runs one command."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as raised:
            main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return Outcome(int(raised.value.code or 0), out, err)
