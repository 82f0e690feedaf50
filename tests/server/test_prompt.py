"""The window around the cursor and the cut."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.types import ContextChunk, SamplingParams
from server.config import ServerConfig
from server.prompt import build_request, cut_window, path_of_language
from server.types import CompletionRequest

SMALL = ServerConfig(before_lines=8, after_lines=6, step_lines=3, before_chars=60, after_chars=50, step_chars=20)
FILES = st.text(alphabet="ab\n\r\té🙂", max_size=400)
LINES = st.integers(0, 60)


@given(FILES, FILES)
def test_a_window_is_the_text_next_to_the_cursor_and_never_larger_than_its_limits(before: str, after: str) -> None:
    window = cut_window(before, after, SMALL)
    assert before.endswith(window.before)
    assert after.startswith(window.after)
    assert window.before.count("\n") <= SMALL.before_lines
    assert window.after.count("\n") <= SMALL.after_lines
    assert len(window.before) <= SMALL.before_chars
    assert len(window.after) <= SMALL.after_chars


@given(FILES, FILES)
def test_a_window_is_not_cut_more_than_its_steps_ask_for(before: str, after: str) -> None:
    window = cut_window(before, after, SMALL)
    if len(window.before) < len(before):
        enough_lines = window.before.count("\n") > SMALL.before_lines - SMALL.step_lines
        assert enough_lines or len(window.before) > SMALL.before_chars - 2 * SMALL.step_chars
    if len(window.after) < len(after):
        enough_lines = window.after.count("\n") > SMALL.after_lines - SMALL.step_lines
        assert enough_lines or len(window.after) > SMALL.after_chars - 2 * SMALL.step_chars


@given(FILES, FILES)
def test_the_cut_is_the_start_of_the_cursors_line_or_of_the_window(before: str, after: str) -> None:
    window = cut_window(before, after, SMALL)
    assert "\n" not in window.before[window.cut :]
    assert window.cut == 0 or window.before[window.cut - 1] == "\n"


@given(FILES, st.text(alphabet="xyz", max_size=30))
def test_typing_on_a_line_moves_the_start_of_the_window_at_most_once_in_a_step_of_characters(
    before: str, typed: str
) -> None:
    starts = []
    for num_typed in range(len(typed) + 1):
        text = before + typed[:num_typed]
        starts.append(len(text) - len(cut_window(text, "", SMALL).before))
    assert starts == sorted(starts)
    assert len(set(starts)) <= 2 + len(typed) // SMALL.step_chars


@given(LINES, st.integers(0, 20))
def test_new_lines_move_the_start_of_the_window_in_whole_steps(num_lines: int, num_new_lines: int) -> None:
    starts = []
    for count in range(num_lines, num_lines + num_new_lines + 1):
        text = "a\n" * count
        starts.append((len(text) - len(cut_window(text, "", SMALL).before)) // 2)
    assert all(start % SMALL.step_lines == 0 for start in starts)
    assert len(set(starts)) <= 2 + num_new_lines // SMALL.step_lines


@given(FILES, FILES, FILES)
def test_what_is_typed_before_the_cursor_leaves_the_window_after_it_alone(before: str, typed: str, after: str) -> None:
    assert cut_window(before, after, SMALL).after == cut_window(before + typed, after, SMALL).after


@given(LINES)
def test_moving_the_cursor_down_leaves_the_end_of_the_window_on_a_multiple_of_lines(num_lines: int) -> None:
    after = "b\n" * num_lines
    num_dropped_lines = num_lines - cut_window("", after, SMALL).after.count("\n")
    assert num_dropped_lines % SMALL.step_lines == 0


def test_a_small_file_is_shown_whole() -> None:
    window = cut_window("def f():\n    retu", "\n\nprint(f())\n", ServerConfig())
    assert (window.before, window.after) == ("def f():\n    retu", "\n\nprint(f())\n")
    assert window.before[window.cut :] == "    retu"


def test_an_empty_file_has_an_empty_window() -> None:
    assert msgspec.structs.astuple(cut_window("", "", ServerConfig())) == ("", "", 0)


def test_a_single_line_of_a_megabyte_is_cut_by_characters_and_the_cut_is_the_start_of_the_window() -> None:
    config = ServerConfig()
    window = cut_window("x" * 1_000_000, "y" * 1_000_000, config)
    assert config.before_chars - config.step_chars <= len(window.before) <= config.before_chars
    assert config.after_chars - config.step_chars <= len(window.after) <= config.after_chars
    assert window.cut == 0


def test_typing_on_a_very_long_line_moves_the_start_of_the_window_in_whole_steps() -> None:
    starts = {num_chars - len(cut_window("x" * num_chars, "", SMALL).before) for num_chars in range(200, 300)}
    assert starts == {140, 160, 180, 200, 220, 240}


def test_the_request_to_the_engine_carries_the_window_and_everything_else() -> None:
    context = (ContextChunk(path="b.py", text="x = 1\n"),)
    request = CompletionRequest(before="a\nb", after="c", path="a.py", context=context, request_id="client's")
    sampling = SamplingParams(max_tokens=3)
    built = build_request(request, request_id="ours", sampling=sampling, config=ServerConfig())
    assert (built.request_id, built.before, built.after, built.cut) == ("ours", "a\nb", "c", 2)
    assert (built.path, built.context, built.sampling) == ("a.py", context, sampling)


def test_a_language_stands_in_for_a_missing_path_only() -> None:
    def path_for(**fields: Any) -> str:
        request = CompletionRequest(before="", **fields)
        return build_request(request, request_id="r", sampling=SamplingParams(), config=ServerConfig()).path

    assert path_for(language="TypeScript") == "untitled.ts"
    assert path_for(language="typescript", path="src/a.py") == "src/a.py"
    assert path_for(language="klingon") == ""
    assert path_of_language("") == ""
