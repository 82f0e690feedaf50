"""Embedding: the same place, the same vector; like places, near vectors."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.embedder import HashedTokens, token_features


@given(st.text())
def test_a_vector_has_length_one_or_none_at_all(before: str) -> None:
    vector = HashedTokens(64).embed(before)
    assert (vector.dtype, vector.shape) == (np.float32, (64,))
    assert float(vector @ vector) == pytest.approx(1.0, abs=1e-5) or not vector.any()


def test_text_that_utf8_cannot_hold_has_a_vector() -> None:
    assert HashedTokens().embed("a\ud800").any()


def test_another_process_gives_the_same_vector() -> None:
    script = "from cache.embedder import HashedTokens; print(HashedTokens(16).embed('for i in range(').tobytes().hex())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert bytes.fromhex(done.stdout) == HashedTokens(16).embed("for i in range(").tobytes()


def test_like_places_are_nearer_than_others() -> None:
    here, alike, other = map(
        HashedTokens().embed,
        (
            "    def area(self):\n        return self.",
            "    def volume(self):\n        return self.",
            "import os\n\nfor name in os.listdir(",
        ),
    )
    assert here @ alike > 0.5 > here @ other


def test_what_is_far_above_does_not_count() -> None:
    assert np.array_equal(HashedTokens().embed("x " * 500 + "y"), HashedTokens().embed("z " + "x " * 500 + "y"))


def test_runs_and_endings_are_features() -> None:
    hashes, weights = token_features("a = b")
    assert len(hashes) == len(weights) == (3 + 2 + 1) + 3
    assert weights[0] == 1.0
    assert token_features("") == ([], [])
