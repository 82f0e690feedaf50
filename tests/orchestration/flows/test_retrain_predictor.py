"""Flow `retrain-predictor`: a better predictor is promoted, another one is not."""

import asyncio
import random
from pathlib import Path

import pytest

from orchestration.flows.errors import FlowInputError
from server.feedback import FILE_NAME, PREDICTOR_NAME
from server.predictor import FEATURES, START, Guess, Predictor
from server.record_file import RecordFile

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("prefect_home")]  # Prefect's own warnings


def record(directory: Path, *, num_guesses: int, is_learnable: bool) -> None:
    rng = random.Random(0)
    file = RecordFile(directory / FILE_NAME, max_bytes=1 << 24)
    start = Predictor()
    for _ in range(num_guesses):
        features = (1.0, *(rng.uniform(0, 2) for _ in FEATURES["key"][1:]))
        usual = start.probability("key", features)
        file.append(Guess(kind="key", features=features, has_come=rng.random() < (0.95 if is_learnable else usual)))
    file.flush()


def run(directory: Path, **parameters: float) -> dict[str, object]:
    from orchestration.flows.retrain_predictor import retrain_predictor

    return dict(asyncio.run(retrain_predictor.fn(str(directory), **parameters)))


def test_what_predicts_the_newest_guesses_better_is_promoted_once(tmp_path: Path) -> None:
    record(tmp_path, num_guesses=1000, is_learnable=True)
    report = run(tmp_path)
    assert report["is_promoted"]
    assert Predictor.load(tmp_path / PREDICTOR_NAME).weights["key"] != list(START["key"])
    again = run(tmp_path)
    assert not again["is_promoted"]
    assert again["verdict"] == "kept: the trained one is no better"


def test_too_few_guesses_and_guesses_that_teach_nothing_keep_the_incumbent(tmp_path: Path) -> None:
    record(tmp_path, num_guesses=50, is_learnable=True)
    assert run(tmp_path)["verdict"] == "kept: 50 guesses recorded, 200 are the least to judge by"
    record(tmp_path, num_guesses=400, is_learnable=False)
    assert not run(tmp_path)["is_promoted"]
    assert not (tmp_path / PREDICTOR_NAME).exists()


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowInputError, match=r"none is no directory; expected what server.feedback_directory names"):
        run(tmp_path / "none")
    with pytest.raises(FlowInputError, match=r"newest_share is 1; expected a share above 0 and below 1"):
        run(tmp_path, newest_share=1)
