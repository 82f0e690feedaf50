"""What each step shape costs on this machine, in seconds: measured at start, kept true while serving.

The scheduler chooses by it how large a chunk may stand beside running sequences, and how long a draft pays. Knows no
JAX.
"""

from collections.abc import Mapping

from engine.shapes import Shape

_WEIGHT = 0.05
"""Of a new measurement in the moving mean."""
_OUTLIER = 4.0
"""A step slower than this many times its mean was disturbed; it counts as this much."""


class StepCosts:
    """Moving means of step times."""

    def __init__(self, measured: Mapping[Shape, float]) -> None:
        """`measured`: seconds of every shape of the family."""
        self._seconds = dict(measured)

    def seconds(self, shape: Shape) -> float:
        """Return what a step of this shape takes."""
        return self._seconds[shape]

    def note(self, shape: Shape, seconds: float) -> None:
        """Take in one measured step."""
        mean = self._seconds[shape]
        self._seconds[shape] = mean + _WEIGHT * (min(seconds, _OUTLIER * mean) - mean)
