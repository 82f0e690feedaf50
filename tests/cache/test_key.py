"""Keys: everything that decides an answer tells two of them apart."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.key import Key
from tests.cache.made_keys import make_key

CHANGES: dict[str, Any] = {
    "tenant": "other",
    "model": "other",
    "template": "other",
    "before": "def f():\n    return x",
    "after": "other",
    "cut": 0,
    "context_hash": "other",
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "seed": 2**70,
    "max_tokens": 3,
    "stop": ("E", "ND"),
}


def test_every_field_is_tried_here() -> None:
    assert set(CHANGES) == set(Key.__struct_fields__)


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_every_field_decides(field: str) -> None:
    changed = msgspec.structs.replace(make_key(), **{field: CHANGES[field]})
    assert changed.digest != make_key().digest
    assert (changed.place != make_key().place) == (field != "before")
    assert (changed.realm != make_key().realm) == (field in {"tenant", "model", "template"})


def test_equal_keys_have_equal_digests() -> None:
    assert (make_key().digest, make_key().place) == (make_key().digest, make_key().place)
    assert len(make_key().digest) == 32


def test_typing_behind_the_cut_keeps_the_place_and_lengthens_the_line() -> None:
    earlier, later = make_key("a\nb"), make_key("a\nbc")
    assert earlier.place == later.place
    assert (earlier.line, later.line) == ("b", "bc")


def test_a_newline_moves_the_cut_and_with_it_the_place() -> None:
    assert make_key("a\nb").place != make_key("a\nb\n").place


def test_text_that_utf8_cannot_hold_has_a_digest_too() -> None:
    assert make_key("\ud800").digest != make_key("\ud801").digest


@given(st.tuples(*[st.text(max_size=3)] * 4), st.tuples(*[st.text(max_size=3)] * 4))
def test_borders_between_texts_count(left: tuple[str, ...], right: tuple[str, ...]) -> None:
    names = ("tenant", "model", "template", "after")
    digests = [make_key(**dict(zip(names, texts, strict=True))).digest for texts in (left, right)]
    assert (digests[0] == digests[1]) == (left == right)
