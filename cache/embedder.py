"""Where a cursor stands, as a vector: places at which the same text is likely to follow get vectors that are near.

Hashed token n-grams: every run of one to three tokens left of the cursor, and the exact endings of one to six tokens,
each hashed to a signed dimension (Weinberger et al., "Feature hashing", 2009), runs counting less the farther away they
are. Chosen by measurement against learned embeddings and a model's own states: `docs/decisions/0008`.

Knows text only. The same text gives the same vector in every process and on every machine, which snapshots rely on;
whoever changes a number here changes `name`.
"""

import re
import zlib
from typing import Protocol

import numpy as np

_TOKEN = re.compile(r"\w+|[^\w\s]|\n\s*")
_MOST_CHARS = 160
_MOST_TOKENS = 16
_RUN_LENGTHS = 3
_HALVED_EVERY = 4.0
_ENDING_LENGTHS = (1, 2, 3, 4, 6)
_ENDING_WEIGHT = 1.0
_SPREAD = 0x9E3779B97F4A7C15
_64_BITS = (1 << 64) - 1
_WEIGHTS = 2.0 ** (-np.arange(_MOST_TOKENS) / _HALVED_EVERY)


class Embedder(Protocol):
    """What the similarity tier needs to know of an embedding."""

    @property
    def name(self) -> str:
        """Tell embeddings apart whose vectors cannot be compared."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    def embed(self, before: str) -> np.ndarray:
        """Return the float32 vector `[dimension]` of the place behind `before`: of length 1, or all zeros."""


class HashedTokens:
    """Hashed token n-grams; takes some tens of microseconds and no memory."""

    def __init__(self, dimension: int = 128) -> None:
        self.name = f"hashed-tokens-1/{dimension}"
        self.dimension = dimension

    def embed(self, before: str) -> np.ndarray:
        """Return the vector of the place behind `before`."""
        hashes, weights = token_features(before)
        spread = [value * _SPREAD & _64_BITS for value in hashes]
        signed = [weight if value >> 32 & 1 else -weight for value, weight in zip(spread, weights, strict=True)]
        places = [(value >> 33) % self.dimension for value in spread]
        vector = np.bincount(np.asarray(places, np.intp), signed, minlength=self.dimension)
        length = float(np.sqrt(vector @ vector))
        return (vector / length if length > 0 else vector).astype(np.float32)


def token_features(before: str) -> tuple[list[int], list[float]]:
    """Return hash (32 bits) and weight of every feature of the place behind `before`."""
    tokens = [token.encode("utf-8", "surrogatepass") for token in _TOKEN.findall(before[-_MOST_CHARS:])]
    nearest_first = tokens[: -_MOST_TOKENS - 1 : -1]
    hashes, weights = list[int](), list[float]()
    for first, weight in zip(range(len(nearest_first)), _WEIGHTS.tolist(), strict=False):
        value = 0
        for length, token in enumerate(nearest_first[first : first + _RUN_LENGTHS], start=1):
            value = zlib.crc32(token, value + length & 0xFFFFFFFF)
            hashes.append(value)
            weights.append(weight)
    value = 0
    for length, token in enumerate(nearest_first[: _ENDING_LENGTHS[-1]], start=1):
        value = zlib.crc32(token, value + 0x5EED & 0xFFFFFFFF)
        if length in _ENDING_LENGTHS:
            hashes.append(value)
            weights.append(_ENDING_WEIGHT)
    return hashes, weights
