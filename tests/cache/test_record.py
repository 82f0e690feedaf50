"""Records: what comes back is exactly what was written under that digest, or nothing."""

from hypothesis import given
from hypothesis import strategies as st

from cache.record import _checksum, decode_record, encode_record
from tests.cache.made_keys import make_answer

DIGEST = b"d" * 32


@given(st.text(st.characters(codec="utf-8")), st.none() | st.floats(allow_nan=False), st.lists(st.text("ab")))
def test_an_answer_comes_back_as_it_was(text: str, gap: float | None, made_from: list[str]) -> None:
    answer = make_answer(text, logit_gap=gap, made_from=tuple(made_from), beyond=text)
    assert decode_record(DIGEST, encode_record(DIGEST, answer)) == answer


def test_a_flipped_byte_or_a_cut_anywhere_is_no_record() -> None:
    record = encode_record(DIGEST, make_answer())
    for at in range(len(record)):
        assert decode_record(DIGEST, record[:at]) is None
        assert decode_record(DIGEST, record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]) is None


def test_another_keys_record_is_none() -> None:
    assert decode_record(b"e" * 32, encode_record(DIGEST, make_answer())) is None


def test_a_whole_record_of_something_else_is_none() -> None:
    body = b"\xa1x"
    assert decode_record(DIGEST, _checksum(DIGEST, body) + body) is None
