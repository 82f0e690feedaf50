"""What each step shape costs on this machine, in seconds: measured at start, kept true while serving.

The scheduler chooses by it how large a chunk may stand beside running sequences, and how wide a draft pays. Knows no
JAX.
"""

import math
from collections.abc import Mapping

from engine.shapes import MAX_SCORED, Shape, ShapeFamily

_DRIFT_STEP, _OWN_STEP = 0.05, 0.05
_MAX_LOG_ERROR = 0.7


class StepCosts:
    """Seconds of a step by shape.

    A step moves the estimates of all shapes (contexts grow longer, others use the machine), and its own as much again.
    So a shape that is seldom run keeps its ratio to the others. Outliers move little.
    """

    def __init__(self, measured: Mapping[Shape, float]) -> None:
        """`measured`: seconds of every shape of the family."""
        self._log_s = {shape: math.log(max(seconds, 1e-9)) for shape, seconds in measured.items()}
        self._drift = 0.0

    def seconds(self, shape: Shape) -> float:
        """Return what a step of this shape takes."""
        return math.exp(self._log_s[shape] + self._drift)

    def note(self, shape: Shape, seconds: float) -> None:
        """Take in what a step took."""
        error = math.log(max(seconds, 1e-9)) - self._log_s[shape] - self._drift
        error = max(-_MAX_LOG_ERROR, min(_MAX_LOG_ERROR, error))
        self._drift += _DRIFT_STEP * error
        self._log_s[shape] += _OWN_STEP * error


class WidthCosts:
    """The costs of verifying drafts (`drafts.lengths.Costs`): rows alone, as wide as their tokens can be scored."""

    def __init__(self, costs: StepCosts, shapes: ShapeFamily) -> None:
        self._costs, self._shapes = costs, shapes
        self.widths = tuple(width for width in shapes.width_buckets if width <= MAX_SCORED)

    def cost_s(self, num_rows: int, width: int) -> float:
        """Return the seconds of a step of `num_rows` rows at `width`."""
        return self._costs.seconds(self._shapes.for_rows(num_rows, width))
