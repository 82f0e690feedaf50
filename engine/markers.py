"""How lines of models spell and arrange a fill-in-the-middle prompt.

Each family lists its own in `model/families/`; `fim.py` finds the one that a vocabulary has and lays prompts out by it.
"""

from typing import Literal

import msgspec


class Markers(msgspec.Struct, frozen=True, kw_only=True):
    """The markers of one line of models, and the order in which it was trained to see them."""

    name: str
    prefix: str
    suffix: str
    middle: str
    separator: str | None = None
    """Announces another file, and the path of the model's own; without one both get `#path` lines."""
    repository: str | None = None
    """Announces the repository's name, before the first other file."""
    repository_end: str = "\n"
    """What follows that name."""
    begin: str | None = None
    """Stands at the start of every prompt."""
    also: tuple[str, ...] = ()
    """Others that tell these models from some with the same markers and another layout."""
    ends: tuple[str, ...] = ()
    """Others that end a completion, where the vocabulary has them; the markers above always do."""
    context: Literal["inside", "outside", "path inside"] = "inside"
    """Whether other files and the own path stand after PRE, before it, or before it with the own path after it."""
    is_suffix_first: bool = False
    """`SUF after PRE before`, without MID, instead of `PRE before SUF after MID`."""

    @property
    def required(self) -> tuple[str | None, ...]:
        """Prefix, suffix, middle, separator, repository and begin, and what tells the set from others."""
        return self.prefix, self.suffix, self.middle, self.separator, self.repository, self.begin, *self.also
