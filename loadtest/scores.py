"""Scores: how near an answer is to what really stood in the hole, and what counts as the answer.

White space around an answer never counts: an editor shows ` return x` and `return x` as the same suggestion.
"""

from rapidfuzz import fuzz


def is_single_line(solution: str) -> bool:
    """Tell whether a solution is one line; the line break that ends it does not make it two."""
    return "\n" not in solution.strip()


def first_line(text: str) -> str:
    """Return a text up to the end of its first line that is not blank."""
    start = len(text) - len(text.lstrip())
    end = text.find("\n", start)
    return text if end < 0 else text[:end]


def has_first_line(text: str) -> bool:
    """Tell whether more text could not change `first_line(text)`."""
    return "\n" in text.lstrip()


def is_exact_match(answer: str, solution: str) -> bool:
    """Tell whether both are the same text, outer white space aside."""
    return answer.strip() == solution.strip()


def edit_similarity(answer: str, solution: str) -> float:
    """Return 1 for the same text to 0 for nothing in common, outer white space aside.

    One minus the insertions and deletions that make one of the other, over the length of both: the `ratio` that
    CodeXGLUE, RepoBench and CrossCodeEval report, there as a rounded percentage.
    """
    return fuzz.ratio(answer.strip(), solution.strip()) / 100
