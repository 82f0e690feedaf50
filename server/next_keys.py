"""The keys that are likely next at a cursor, by what followed the same characters elsewhere in the same text.

Names, calls and lines come again in a file, so what followed the last few characters before is a good guess at what is
typed now, and it is one that the model's suggestion does not make. Longer matches count more: the characters seen after
contexts of every length are blended as in prediction by partial matching (Cleary and Witten, 1984; method C).

Knows no session and no model, and keeps nothing: the text is all that it needs. Takes a fraction of a millisecond.
"""

from collections import Counter

LONGEST_CONTEXT = 12
SHORTEST_CONTEXT = 3
MOST_PLACES = 192
"""Places looked at: those nearest to the cursor."""
REACH_CHARS = 24_576
"""How far from the cursor places are looked for, to both sides."""
_OPENERS = ("{", "[", "(", ":", "=>", "=", " do", " then")


def rank_keys(before: str, after: str, *, most: int = 3) -> list[tuple[str, float]]:
    """Return the likeliest next characters with their probabilities, the likeliest first; often there is none."""
    context = before[-SHORTEST_CONTEXT:]
    if len(context) < SHORTEST_CONTEXT:
        return []
    counts: list[Counter[str]] = [Counter() for _ in range(LONGEST_CONTEXT + 1)]
    above = before[-REACH_CHARS:]
    for char, length in _places_above(above, context):
        counts[length][char] += 1
    num_left = MOST_PLACES - sum(map(len, counts))
    for char, length in _places_below(above, after[:REACH_CHARS], context, num_left):
        counts[length][char] += 1
    return _blend(counts)[:most]


def indentation_after(line: str) -> str:
    """Return the indentation that an editor puts at the start of the line after `line`."""
    content = line.rstrip()
    indentation = line[: len(line) - len(line.lstrip())]
    if not content.strip():
        return line
    if not content.endswith(_OPENERS):
        return indentation
    return indentation + ("\t" if indentation.startswith("\t") else "    " if content.endswith(":") else "  ")


def _places_above(text: str, context: str) -> list[tuple[str, int]]:
    """Return what followed the context left of the cursor, and how long the match is there; the nearest first."""
    places: list[tuple[str, int]] = []
    at = text.rfind(context, 0, len(text) - 1)
    while at >= 0 and len(places) < MOST_PLACES:
        end = at + len(context)
        places.append((text[end], _match_length(text, text, end)))
        at = text.rfind(context, 0, end - 1)
    return places


def _places_below(above: str, after: str, context: str, most: int) -> list[tuple[str, int]]:
    places: list[tuple[str, int]] = []
    at = after.find(context)
    while 0 <= at < len(after) - len(context) and len(places) < most:
        end = at + len(context)
        places.append((after[end], _match_length(above, after, end)))
        at = after.find(context, at + 1)
    return places


def _match_length(before: str, text: str, end: int) -> int:
    """Return how many characters before `end` are those before the cursor."""
    length = SHORTEST_CONTEXT
    most = min(LONGEST_CONTEXT, end, len(before))
    while length < most and text[end - length - 1] == before[-length - 1]:
        length += 1
    return length


def _blend(counts: list[Counter[str]]) -> list[tuple[str, float]]:
    """Return characters by probability: each order has what the longer ones leave for characters not seen there."""
    seen: Counter[str] = Counter()
    left = 1.0
    weights: dict[str, float] = {}
    for length in range(LONGEST_CONTEXT, SHORTEST_CONTEXT - 1, -1):
        seen.update(counts[length])  # a long match is one of its shorter ones too
        if not seen:
            continue
        total = sum(seen.values()) + len(seen)
        for char, count in seen.items():
            weights[char] = weights.get(char, 0.0) + left * count / total
        left *= len(seen) / total
    return sorted(weights.items(), key=lambda item: -item[1])
