"""Where the last tokens of a sequence stood before, and what came after them there.

Knows no sources and no texts, only an array of token ids in which a negative number is an end: it equals no token,
so that no match crosses it and no continuation runs past it.
"""

from collections.abc import Iterable, Sequence

import numpy as np

END = -1
_NOTHING = -2
MAX_MATCH = 16
"""Most trailing tokens that are compared; what agrees in so many is not told apart any more."""
_CLOSE = 4
_MAX_PLACES = 64
"""Of more places than this that agree in the last `_CLOSE` tokens, only the latest are looked at: bounds the time."""
_LEAST_PATH = 0.1
"""A continuation ends where fewer of its places than this share have gone the same way so far."""


class TokenBuffer:
    """An int32 array of tokens that grows, `MAX_MATCH` ends before the first and at least one after the last.

    So whoever compares backwards or reads on need not look where the array begins or stops.
    """

    def __init__(self, tokens: Iterable[int] | np.ndarray = (), *, room: int = 64) -> None:
        """`room`: how many more tokens fit before the first copy."""
        tokens = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens), np.int32)
        self.stop = MAX_MATCH
        """Index after the last token."""
        self.array = np.full(MAX_MATCH + len(tokens) + room + 1, END, np.int32)
        """Tokens stand in `[MAX_MATCH, stop)`."""
        self.append(tokens)

    def __len__(self) -> int:
        return self.stop - MAX_MATCH

    def append(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Add tokens at the end."""
        stop = self.stop + len(tokens)
        if stop >= len(self.array):
            grown = np.full(2 * stop, END, np.int32)
            grown[: self.stop] = self.array[: self.stop]
            self.array = grown
        self.array[self.stop : stop] = tokens
        self.stop = stop

    def tail(self) -> np.ndarray:
        """Return the last `MAX_MATCH` tokens, the last one first; then, if there are fewer, what equals nothing."""
        tail = self.array[self.stop - MAX_MATCH : self.stop][::-1]
        return tail if len(self) >= MAX_MATCH else np.where(tail < 0, _NOTHING, tail)


def find_places(array: np.ndarray, start: int, stop: int, token: int) -> np.ndarray:
    """Return the indices in `[start, stop)` that hold `token` and are followed by a token, ascending."""
    places = np.flatnonzero(array[start:stop] == token) + start
    return places[array[places + 1] >= 0]


def longest_match(array: np.ndarray, places: np.ndarray, tail: np.ndarray) -> tuple[int, np.ndarray]:
    """Return how many trailing tokens agree at best, at most `MAX_MATCH`, and the places where so many do.

    `places` are ascending indices of tokens equal to the last one, `tail` is `TokenBuffer.tail` of the sequence.
    """
    wanted = tail.tolist()
    for depth in range(1, _CLOSE):
        nearer = places[array[places - depth] == wanted[depth]]
        if not len(nearer):
            return depth, places
        places = nearer
    places = places[-_MAX_PLACES:]
    differs = array[places[:, None] - np.arange(MAX_MATCH)] != tail
    differs_at = np.where(differs.any(axis=1), differs.argmax(axis=1), MAX_MATCH)
    length = int(differs_at.max())
    return length, places[differs_at == length]


def likeliest_continuation(array: np.ndarray, places: np.ndarray, limit: int) -> tuple[list[int], list[float]]:
    """Return at most `limit` tokens that follow the places, and for each the share of places that agree with it.

    At each token the places that went the most frequent way go on; of two ways equally frequent the latest is
    taken. A share counts the places that went on at all. The path ends when the product of its shares falls below
    `_LEAST_PATH`. This is the walk down a suffix tree by frequency of ArcticInference's suffix decoding, on the
    occurrences themselves.
    """
    if len(places) == 1:
        start = int(places[0]) + 1
        tokens = array[start : start + limit].tolist()
        tokens = tokens[: tokens.index(END)] if END in tokens else tokens
        return tokens, [1.0] * len(tokens)
    at = places[: -_MAX_PLACES - 1 : -1, None] + np.arange(1, limit + 1)
    alive = array[np.minimum(at, len(array) - 1)].tolist()
    chosen: list[int] = []
    shares: list[float] = []
    path = 1.0
    for depth in range(limit):
        counts: dict[int, int] = {}
        for row in alive:
            if (token := row[depth]) >= 0:
                counts[token] = counts.get(token, 0) + 1
        if not counts:
            break
        best = max(counts, key=counts.__getitem__)
        share = counts[best] / sum(counts.values())
        path *= share
        if path < _LEAST_PATH:
            break
        chosen.append(best)
        shares.append(share)
        alive = [row for row in alive if row[depth] == best]
    return chosen, shares
