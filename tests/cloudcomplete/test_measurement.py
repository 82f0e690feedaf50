"""What measuring commands have in common; that they use it is seen in their own tests."""

import argparse
from pathlib import Path

import pytest

from cloudcomplete import measurement
from loadtest.report import Result


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    measurement.add_arguments(parser)
    return parser.parse_args(words)


def test_a_server_that_was_named_is_asked_and_none_started() -> None:
    with measurement.opened_server(parse("--server", "h:1")) as server:
        assert server == measurement.ServerUnderTest("h:1", None)


def test_a_command_line_has_what_decides_the_figures_and_not_where_they_go() -> None:
    arguments = parse("--server", "h:1", "--client-cache", "--json", "out", "--plots", "plots")
    line = measurement.command_line(
        arguments, "replay", Path("a b"), options=("server", "dialect"), flags=("client-cache",)
    )
    assert line == "cloudcomplete replay 'a b' --server h:1 --dialect grpc --client-cache"


@pytest.mark.parametrize("is_begun", [True, False])
def test_an_interrupt_is_shown_with_what_was_done_and_goes_on(
    is_begun: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    arguments = parse("--json", str(tmp_path / "out.json"), "--plots", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        measurement.conclude(
            arguments,
            interrupt,
            is_begun=lambda: is_begun,
            assemble=lambda: Result(headline={"rows": 3}),
            draw=lambda: {"sources": b"<svg/>"},
        )
    assert ("rows" in capsys.readouterr().out) is is_begun
    assert {path.name for path in tmp_path.iterdir()} == ({"out.json", "sources.svg"} if is_begun else set())
