"""How likely it is that a request will come: one small logistic model for each kind of guess, learned while it is used.

    predictor = Predictor()
    predictor.probability("key", features)      # before
    predictor.learn(Guess(kind="key", features=features, has_come=True))    # after

What may come next is guessed by `server/prefetch.py`: that a suggestion is accepted or typed to its end, that another
key is pressed than the one suggested, that a new line is begun. Each guess that turned out right or wrong is an
example; `train` learns from recorded ones. It starts from weights that were learned from recorded typing, and those
pull on it, so that a few odd users do not spoil it (a logistic regression by stochastic gradient descent with a penalty
on the distance from the start).

Knows no session, no request and no text. Used from one thread at a time.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from server.errors import PredictorError

Kind = Literal["accept", "key", "newline"]
"""As if the suggestion were taken whole; another key than the one suggested; a new line."""

VERSION = 1
"""Changes with the meaning of kinds or features; what was saved before is not read then."""
FEATURES: dict[Kind, tuple[str, ...]] = {
    "accept": ("bias", "chars_left", "chars_typed"),
    "key": ("bias", "odds", "chars_typed"),
    "newline": ("bias", "odds", "is_line_end", "is_empty"),
}
"""What each kind looks at: logarithms of characters of the suggestion left and typed, of the odds by
`server/next_keys.py`, and whether the line ends at the cursor and nothing was suggested."""
START: dict[Kind, tuple[float, ...]] = {
    "accept": (-0.1, -1.7, 0.6),
    "key": (-0.9, 0.5, -0.8),
    "newline": (-2.6, 0.8, 0.9, 2.8),
}
"""Weights before anything was learned here: learned from 400 recorded keystrokes, with the starter model's suggestions
(`docs/decisions/0016`)."""
_RATE = 0.05
_PULL = 0.002
_MOST_LOGIT = 8.0


class Guess(msgspec.Struct, frozen=True, kw_only=True, tag="guess"):
    """A guess at what comes next, and whether it came: an example to learn from."""

    kind: Kind
    features: tuple[float, ...]
    """As `FEATURES` names them."""
    has_come: bool


class _Saved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    num_learned: int
    weights: dict[Kind, list[float]]


class Predictor:
    """The weights of all kinds."""

    def __init__(self) -> None:
        self.weights: dict[Kind, list[float]] = {kind: list(weights) for kind, weights in START.items()}
        self.num_learned = 0
        """Examples seen."""
        self._origin = b""

    def probability(self, kind: Kind, features: Sequence[float]) -> float:
        """Return how likely a guess with these features comes true, 0 to 1."""
        assert len(features) == len(FEATURES[kind]), f"a guess of the kind {kind} has {len(FEATURES[kind])} features"
        logit = sum(weight * feature for weight, feature in zip(self.weights[kind], features, strict=True))
        return 1 / (1 + math.exp(-max(-_MOST_LOGIT, min(_MOST_LOGIT, logit))))

    def learn(self, guess: Guess) -> None:
        """Take one example; those of another length, as an older version recorded them, are left out."""
        if len(guess.features) != len(FEATURES[guess.kind]) or not all(map(math.isfinite, guess.features)):
            return
        error = guess.has_come - self.probability(guess.kind, guess.features)
        self.weights[guess.kind] = [
            weight + _RATE * error * feature - _PULL * (weight - start)
            for weight, feature, start in zip(self.weights[guess.kind], guess.features, START[guess.kind], strict=True)
        ]
        self.num_learned += 1

    def save(self, path: Path) -> None:
        """Write the weights so that a reader sees all of them or the ones before; raises OSError."""
        saved = _Saved(version=VERSION, num_learned=self.num_learned, weights=self.weights)
        aside = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(msgspec.json.encode(saved))
        aside.replace(path)

    def is_origin(self, path: Path) -> bool:
        """Tell whether a file is still what this was loaded from, or is still missing; raises OSError."""
        return (path.read_bytes() if path.exists() else b"") == self._origin

    @classmethod
    def load(cls, path: Path) -> "Predictor":
        """Read saved weights; raises PredictorError for what is none, or of another version; OSError."""
        data = path.read_bytes()
        try:
            saved = msgspec.json.decode(data, type=_Saved)
        except msgspec.DecodeError as error:
            raise PredictorError(
                f"{path} is no saved predictor: {error}; expected what `Predictor.save` wrote; delete it to begin anew"
            ) from None
        if saved.version != VERSION:
            raise PredictorError(
                f"{path} has version {saved.version} of the predictor; expected {VERSION}; delete it to begin anew"
            )
        shapes = {kind: len(weights) for kind, weights in saved.weights.items()}
        expected = {kind: len(names) for kind, names in FEATURES.items()}
        if shapes != expected or not all(math.isfinite(w) for weights in saved.weights.values() for w in weights):
            raise PredictorError(
                f"{path} has weights {shapes}; expected {expected}, all of them numbers; delete it to begin anew"
            )
        predictor = cls()
        predictor.weights, predictor.num_learned, predictor._origin = saved.weights, saved.num_learned, data
        return predictor


def train(records: Iterable[object], *, num_rounds: int = 3) -> Predictor:
    """Return a predictor that has seen every `Guess` among the records `num_rounds` times, in their order."""
    guesses = [record for record in records if isinstance(record, Guess)]
    predictor = Predictor()
    for _ in range(num_rounds):
        for guess in guesses:
            predictor.learn(guess)
    predictor.num_learned = len(guesses)
    return predictor
