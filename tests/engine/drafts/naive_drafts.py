"""The obvious twin of `engine.drafts.matching` and of the corpus: lists, loops, and every text searched anew."""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile


def agreement(text: Sequence[int], end: int, history: Sequence[int]) -> int:
    """Return how many tokens up to and with `text[end]` agree with the history's last ones, at most 16."""
    pairs = zip(reversed(text[: end + 1]), reversed(history), strict=False)
    return min(16, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] >= 0, pairs)))


def propose(
    texts: Sequence[Sequence[int]], history: Sequence[int], limit: int, *, least_match: int
) -> tuple[list[int], list[float], int]:
    """Return tokens, shares and length of the longest match in texts without ends, the latest text last."""
    places = [(text, end) for text in texts for end in range(len(text) - 1)]
    found = [(text, end, agreement(text, end, history)) for text, end in places]
    longest = max((length for *_, length in found), default=0)
    if longest < least_match:
        return [], [], 0
    close = [(text, end, length) for text, end, length in found if length >= min(longest, 4)]
    if longest >= 4:
        close = close[-64:]
    longest = max(length for *_, length in close)
    alive = [text[end + 1 :] for text, end, length in reversed(close) if length == longest][:64]
    tokens: list[int] = []
    shares: list[float] = []
    path = 1.0
    while len(tokens) < limit:
        alive = [rest for rest in alive if len(rest) > len(tokens)]
        counts = Counter(rest[len(tokens)] for rest in alive)
        if not counts:
            break
        token, count = counts.most_common(1)[0]
        path *= count / len(alive)
        if path < 0.1:
            break
        alive = [rest for rest in alive if rest[len(tokens)] == token]
        tokens.append(token)
        shares.append(count / sum(counts.values()))
    return tokens, shares, longest
