"""Flow `retrain-predictor`: learn from recorded guesses which work ahead pays, and keep what predicts better.

The predictor is `server/predictor.py`, its examples are what servers recorded in `server.feedback_directory`. Trained
on the older guesses, judged on the newer ones against the incumbent and against the weights every server begins with.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prefect

from orchestration.flows.errors import FlowInputError
from orchestration.flows.steps import show_plot, show_table, step
from server import plots
from server.errors import PredictorError
from server.feedback import PREDICTOR_NAME, read_feedback
from server.predictor import Guess, Predictor, train

LEAST_GUESSES = 200
"""With fewer recorded guesses nothing is judged: chance would decide."""
_LEAST_GAIN = 0.001
"""In nats a guess."""


@prefect.flow(name="retrain-predictor")
async def retrain_predictor(feedback: str, newest_share: float = 0.3, run_key: str = "") -> dict[str, Any]:
    """Train on the guesses recorded in the directory `feedback`, judge on the newest share, promote or keep.

    Servers read the promoted one when they start; one that runs goes on with its own and leaves that when it stops, so
    run this between stopping and starting, or give servers a copy of the directory. Raises FlowInputError.
    """
    report = await train_and_judge(feedback, newest_share, run_key=run_key)
    await show_table("predictor", report["rows"], title=f"mean loss in nats: {report['verdict']}")
    losses = {row["predictor"]: row["loss"] for row in report["rows"]}
    await show_plot("predictor-losses", plots.bars("Predictors on the newest guesses", losses, x_label="nats a guess"))
    return {key: value for key, value in report.items() if key != "rows"}


@step(timeout_s=1800, is_kept=True)
def train_and_judge(feedback: str, newest_share: float, *, run_key: str) -> dict[str, Any]:
    """Train, judge, and write the trained one in the place of the incumbent where it is better."""
    del run_key
    directory = Path(feedback).expanduser()
    if not directory.is_dir():
        raise FlowInputError(
            f"{feedback} is no directory; expected what server.feedback_directory names; start servers with it"
        )
    if not 0 < newest_share < 1:
        raise FlowInputError(f"newest_share is {newest_share:g}; expected a share above 0 and below 1")
    guesses = [record for record in read_feedback(directory) if isinstance(record, Guess)]
    if len(guesses) < LEAST_GUESSES:
        verdict = f"kept: {len(guesses)} guesses recorded, {LEAST_GUESSES} are the least to judge by"
        return {"rows": [], "verdict": verdict, "is_promoted": False, "num_guesses": len(guesses)}
    split = int(len(guesses) * (1 - newest_share))
    place = directory / PREDICTOR_NAME
    predictors = {"first": Predictor(), "incumbent": _incumbent(place), "trained": train(guesses[:split])}
    losses = {name: loss(predictor, guesses[split:]) for name, predictor in predictors.items()}
    is_better = losses["trained"] < min(losses["incumbent"], losses["first"]) - _LEAST_GAIN
    if is_better:
        predictors["trained"].save(place)
    verdict = "promoted: it predicts the newest guesses better" if is_better else "kept: the trained one is no better"
    rows = [{"predictor": name, "loss": value, "num_guesses": len(guesses) - split} for name, value in losses.items()]
    return {
        "rows": rows,
        "verdict": verdict,
        "is_promoted": is_better,
        "num_guesses": len(guesses),
        **{f"{name}_loss": value for name, value in losses.items()},
    }


def loss(predictor: Predictor, guesses: Sequence[Guess]) -> float:
    """Return the mean of minus the logarithm of the probability given to what happened, in nats."""
    total = 0.0
    for guess in guesses:
        probability = predictor.probability(guess.kind, guess.features)
        total -= math.log(probability if guess.has_come else 1 - probability)
    return total / len(guesses)


def _incumbent(place: Path) -> Predictor:
    try:
        return Predictor.load(place) if place.exists() else Predictor()
    except PredictorError:  # no server would read it either
        return Predictor()
