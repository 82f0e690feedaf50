import msgspec
import numpy as np

from engine.training.config import ExamplesConfig
from engine.training.evaluate import line_examples, measure_exact_matches, measure_losses
from engine.training.examples import HOLE, ExampleMaker
from engine.training.trainer import initial_params
from engine.training.vocabulary import MIDDLE


def test_lines_to_complete_are_the_rest_of_one_line(documents, tokenizer) -> None:
    maker = ExampleMaker(documents, tokenizer, ExamplesConfig(joint_share=1.0), split="held-out", seed=0)
    examples = line_examples(maker, "python", 20, 256, np.random.default_rng(0))
    assert len(examples) == 20
    for example in examples:
        hole = [token for token, kind in zip(example.tokens, example.kinds, strict=True) if kind == HOLE]
        assert tokenizer.decode(hole).strip()
        middle = tokenizer.decode(example.tokens[example.tokens.index(MIDDLE) + 1 :])
        assert middle in documents[-1].text
        assert not middle.endswith("\n")


def test_a_model_that_always_says_the_same_matches_nothing_exactly(documents, tokenizer, config) -> None:
    maker = ExampleMaker(documents, tokenizer, ExamplesConfig(joint_share=1.0), split="held-out", seed=0)
    params = initial_params(config.shape.resolve(), 0)
    figures = measure_exact_matches(config, params, maker, lines_per_language=5, length=128)
    assert figures.keys() == {"python"}
    assert figures["python"].num_lines == 5
    assert figures["python"].num_exact == 0
    assert figures["python"].num_likeliest < figures["python"].num_tokens
    assert msgspec.to_builtins(figures["python"])["num_tokens"] >= 10


def test_losses_of_fresh_weights_are_about_those_of_chance(documents, tokenizer, config) -> None:
    maker = ExampleMaker(documents, tokenizer, config.examples, split="held-out", seed=0)
    figures = measure_losses(config, initial_params(config.shape.resolve(), 0), maker, num_rows=2, length=64)
    assert abs(figures.loss - np.log(320)) < 1.5
    assert abs(figures.hole_loss - np.log(320)) < 2
