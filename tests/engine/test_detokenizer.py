"""The streaming detokenizer against its obvious twin: decode everything written so far, then look for stops."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.detokenizer import Detokenizer
from engine.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_directory(Path(__file__).parents[1] / "fixtures" / "models" / "tiny-llama")
BYTE_IDS = {TOKENIZER.token_bytes(token_id): token_id for token_id in range(TOKENIZER.num_tokens)}

token_ids = st.lists(st.integers(0, TOKENIZER.num_tokens - 1), max_size=30)
"""Random tokens: mostly invalid UTF-8."""

text_ids = st.text(st.sampled_from("ab\n é世🙂"), max_size=20).map(
    lambda text: [BYTE_IDS[bytes((byte,))] for byte in text.encode()]
)
"""Text, a token for each byte, so that each character of several bytes is divided."""

stops = st.lists(st.text(st.sampled_from("ab\n é世🙂"), min_size=1, max_size=4), max_size=3).map(tuple)


def certain_text(data: bytes) -> str:
    """Decode bytes up to a character that is not complete yet; half a surrogate's three bytes count as one."""
    if re.search(rb"\xed[\xa0-\xbf]\Z", data):
        return data[:-2].decode(errors="replace")
    for num_held in (1, 2, 3):
        try:
            data[-num_held:].decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and error.start == 0 and len(data) >= num_held:
                return data[:-num_held].decode(errors="replace")
    return data.decode(errors="replace")


def stopped_text(text: str, stop: tuple[str, ...]) -> str | None:
    """Read character by character until a stop string is complete; None when none ever is."""
    for end in range(1, len(text) + 1):
        if ends := [one for one in stop if text[:end].endswith(one)]:
            return text[: end - max(map(len, ends))]
    return None


def settled_text(text: str, stop: tuple[str, ...]) -> str:
    """Leave out the longest end of the text that some stop string begins with."""
    for start in range(len(text)):
        if any(one.startswith(text[start:]) for one in stop):
            return text[:start]
    return text


@given(ids=token_ids | text_ids, stop=stops, heal_share=st.floats(0, 1))
@example(ids=[BYTE_IDS[b"\xed"], BYTE_IDS[b"\xa0"]], stop=(), heal_share=0.0)
def test_streamed_text_is_at_each_token_what_decoding_everything_says_is_certain(
    ids: list[int], stop: tuple[str, ...], heal_share: float
) -> None:
    everything = b"".join(map(TOKENIZER.token_bytes, ids))
    heal = everything[: round(heal_share * len(everything))]
    detokenizer = Detokenizer(TOKENIZER, heal=heal, stop=stop)
    streamed, written = "", b""
    for token_id in ids:
        streamed += detokenizer.push(token_id)
        written += TOKENIZER.token_bytes(token_id)
        text = certain_text(written[len(heal) :])
        stopped = stopped_text(text, stop)
        assert streamed == (settled_text(text, stop) if stopped is None else stopped)
        assert detokenizer.is_stopped == (stopped is not None)
    streamed += detokenizer.flush()
    text = certain_text(written[len(heal) :])
    stopped = stopped_text(text, stop)
    assert streamed == (text if stopped is None else stopped)
    assert detokenizer.flush() == ""


@given(text=st.text(max_size=40), stop=stops)
def test_how_text_is_divided_into_tokens_does_not_matter(text: str, stop: tuple[str, ...]) -> None:
    def stream(ids: list[int]) -> str:
        detokenizer = Detokenizer(TOKENIZER, stop=stop)
        return "".join([*map(detokenizer.push, ids), detokenizer.flush()])

    assert stream(TOKENIZER.encode(text)) == stream([BYTE_IDS[bytes((byte,))] for byte in text.encode()])


@pytest.fixture
def push_bytes() -> Callable[[Detokenizer, bytes], list[str]]:
    return lambda detokenizer, data: [detokenizer.push(BYTE_IDS[bytes((byte,))]) for byte in data]


Push = Callable[[Detokenizer, bytes], list[str]]


def test_a_character_comes_out_whole_with_its_last_byte(push_bytes: Push) -> None:
    assert push_bytes(Detokenizer(TOKENIZER), "a🙂é".encode()) == ["a", "", "", "", "🙂", "", "é"]


def test_invalid_bytes_are_replaced_as_soon_as_they_are_certainly_invalid(push_bytes: Push) -> None:
    assert push_bytes(Detokenizer(TOKENIZER), b"\xff\xe4\xb8a") == ["\ufffd", "", "", "\ufffda"]


def test_a_character_that_is_never_completed_is_left_out(push_bytes: Push) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert push_bytes(detokenizer, "a🙂".encode()[:-1]) == ["a", "", "", ""]
    assert detokenizer.flush() == ""


def test_the_healed_bytes_are_not_shown_even_when_one_token_continues_them() -> None:
    detokenizer = Detokenizer(TOKENIZER, heal=b"re")
    assert [detokenizer.push(BYTE_IDS[b"r"]), detokenizer.push(BYTE_IDS[b"e"])] == ["", ""]
    long_token = next(token for token in BYTE_IDS if len(token) > 3)
    assert Detokenizer(TOKENIZER, heal=long_token[:2]).push(BYTE_IDS[long_token]) == long_token[2:].decode()


def test_healing_may_end_within_a_character(push_bytes: Push) -> None:
    data = "é世".encode()
    assert "".join(push_bytes(Detokenizer(TOKENIZER, heal=data[:3]), data)) == "\ufffd\ufffd"
    assert "".join(push_bytes(Detokenizer(TOKENIZER, heal=data[:2]), data)) == "世"


def test_a_token_that_does_not_heal_is_a_defect_of_the_sampler() -> None:
    with pytest.raises(AssertionError, match="does not heal"):
        Detokenizer(TOKENIZER, heal=b"re").push(BYTE_IDS[b"x"])


def test_a_stop_string_over_several_tokens_is_held_back_and_never_shown(push_bytes: Push) -> None:
    detokenizer = Detokenizer(TOKENIZER, stop=("\n\n",))
    assert push_bytes(detokenizer, b"a\nb\n\nc") == ["a", "", "\nb", "", "", ""]
    assert detokenizer.is_stopped
    assert detokenizer.flush() == ""


def test_what_looked_like_a_stop_string_comes_out_at_the_end(push_bytes: Push) -> None:
    detokenizer = Detokenizer(TOKENIZER, stop=("\n\n",))
    assert push_bytes(detokenizer, b"a\n") == ["a", ""]
    assert detokenizer.flush() == "\n"
    assert not detokenizer.is_stopped


def test_the_stop_string_that_is_complete_first_wins_and_of_those_the_longest(push_bytes: Push) -> None:
    assert "".join(push_bytes(Detokenizer(TOKENIZER, stop=("abc", "b")), b"xabc")) == "xa"
    assert "".join(push_bytes(Detokenizer(TOKENIZER, stop=("c", "bc", "abc")), b"xabc")) == "x"


def test_stop_strings_are_looked_for_after_the_cursor_only(push_bytes: Push) -> None:
    detokenizer = Detokenizer(TOKENIZER, heal=b"ab", stop=("ab",))
    assert "".join(push_bytes(detokenizer, b"abcabd")) == "c"


def test_empty_stop_strings_stop_nothing(push_bytes: Push) -> None:
    assert "".join(push_bytes(Detokenizer(TOKENIZER, stop=("",)), b"abc")) == "abc"


def test_markers_have_no_text() -> None:
    marker = TOKENIZER.marker_id("<|fim_middle|>")
    assert marker is not None
    assert Detokenizer(TOKENIZER).push(marker) == ""
