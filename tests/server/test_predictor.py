"""What the predictor learns, keeps and refuses."""

import random
from pathlib import Path

import msgspec
import pytest

from server import app
from server.config import ServerConfig
from server.errors import PredictorError
from server.predictor import FEATURES, START, Guess, Predictor, train


def test_it_learns_how_often_a_guess_comes_true() -> None:
    draw = random.Random(0)
    guesses = []
    for _ in range(2000):
        odds = draw.uniform(-3, 3)
        guesses.append(
            Guess(kind="key", features=(1.0, odds, 0.0), has_come=draw.random() < (0.9 if odds > 0 else 0.1))
        )
    predictor = train(guesses)
    assert predictor.num_learned == 2000
    assert predictor.probability("key", (1.0, 2.0, 0.0)) > 0.7
    assert predictor.probability("key", (1.0, -2.0, 0.0)) < 0.2


def test_other_records_and_examples_of_another_length_teach_nothing() -> None:
    strange = [
        Guess(kind="key", features=(1.0,), has_come=True),
        "no guess",
        Guess(kind="key", features=(1.0, float("inf"), 0.0), has_come=True),
    ]
    assert train(strange).weights == Predictor().weights


def test_what_was_learned_is_kept(tmp_path: Path) -> None:
    predictor = train([Guess(kind="accept", features=(1.0, 2.0, 0.0), has_come=True)])
    predictor.save(tmp_path / "deep" / "predictor.json")
    kept = Predictor.load(tmp_path / "deep" / "predictor.json")
    assert (kept.weights, kept.num_learned) == (predictor.weights, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no saved predictor: "),
        (
            msgspec.json.encode({"version": 99, "num_learned": 0, "weights": {}}),
            "has version 99 of the predictor; expected 1",
        ),
        (
            msgspec.json.encode({"version": 1, "num_learned": 0, "weights": {"key": [1.0]}}),
            "has weights {'key': 1}; expected",
        ),
    ],
)
def test_a_file_of_another_version_or_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "predictor.json"
    path.write_bytes(content)
    with pytest.raises(PredictorError) as caught:
        Predictor.load(path)
    assert message in str(caught.value)
    assert "delete it to begin anew" in str(caught.value)


def test_every_kind_has_a_weight_for_each_feature() -> None:
    assert {kind: len(names) for kind, names in FEATURES.items()} == {kind: len(w) for kind, w in START.items()}


def test_a_server_leaves_what_it_learned_but_never_over_a_predictor_that_was_put_there_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(feedback_directory=str(tmp_path))
    example = Guess(kind="accept", features=(1.0, 0.0, 0.0), has_come=True)
    first = app.load_predictor(config)
    first.learn(example)
    app.save_predictor(first, config)
    second, third = app.load_predictor(config), app.load_predictor(config)
    assert second.num_learned == 1
    second.learn(example)
    app.save_predictor(second, config)
    third.learn(example)
    third.learn(example)
    app.save_predictor(third, config)
    assert app.load_predictor(config).num_learned == 2
    assert "is another predictor than the one this server began with; it stays" in caplog.text
