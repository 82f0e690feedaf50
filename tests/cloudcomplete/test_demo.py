"""The demo, on the counting engine: every place exists, everything is shown, reuse shows."""

import io
import sys
from pathlib import Path

import pytest

from cloudcomplete import demo
from cloudcomplete.errors import SourceFileError
from tests.server.counting_engine import expected_text

COUNTING_SERVER = [sys.executable, str(Path(__file__).parents[1] / "server" / "counting_server.py")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("place", demo.PLACES, ids=lambda place: f"{place.path.name} {place.below.strip()[:12]}")
def test_every_place_of_the_demo_exists_and_has_enough_to_type(place: demo.Place) -> None:
    file, before, hole, after = demo.find_hole(place)
    assert before + hole + after == file.text
    assert before.endswith(place.above)
    assert after.startswith(place.below)
    assert 0 < place.num_typed_chars < len(hole)
    assert "\n" not in hole[: place.num_typed_chars]


def test_the_demo_shows_a_file_of_this_repository_and_one_in_another_language() -> None:
    assert {place.path.suffix for place in demo.PLACES} == {".py", ".ts"}


def test_the_demo_runs_and_shows_text_measures_and_a_summary() -> None:
    out = io.StringIO()
    answers = demo.run(out, command=COUNTING_SERVER)
    shown = out.getvalue()
    assert len(answers) == 2 * len(demo.PLACES)
    for answer, place in zip(answers[::2], demo.PLACES, strict=True):
        _, before, _, _ = demo.find_hole(place)
        assert answer.text == expected_text(before, demo.MAX_TOKENS)
        assert f"«{answer.text}»" in shown
        assert shown.count(f"\n{answer.title} ") == 2  # before the second question, and in the summary
    assert "\x1b" not in shown
    assert "\nServer " in shown
    assert shown.count("tokens/s,") == len(answers)
    assert all(again.usage.num_reused_tokens > 0 for again in answers[1::2])


def test_on_a_terminal_progress_is_rewritten_and_text_is_coloured() -> None:
    out = Terminal()
    demo.run(out, command=COUNTING_SERVER)
    shown = out.getvalue()
    assert "\r\x1b[K  listening on " in shown
    assert "\x1b[1;32m" in shown
    assert "«" not in shown
    assert "draining" not in shown


def test_a_place_that_was_edited_away_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("one two one")
    with pytest.raises(SourceFileError, match=r"has 2 places 'one'; expected 1; correct PLACES"):
        demo.find_hole(demo.Place(path=path, above="one", below="two", num_typed_chars=1))
    with pytest.raises(SourceFileError, match=r"has no 'three' below the place; expected one; correct PLACES"):
        demo.find_hole(demo.Place(path=path, above="two", below="three", num_typed_chars=1))


def test_a_demo_whose_server_cannot_start_is_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COUNTING_LOAD_ERROR", "no model")
    monkeypatch.setattr("cloudcomplete.own_server.serve_command", lambda: COUNTING_SERVER)
    with pytest.raises(SystemExit) as raised:
        demo.main()
    assert raised.value.code == 1
    assert capsys.readouterr().err.endswith("its last line: cloudcomplete: no model\n")
