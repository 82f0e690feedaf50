"""Dividing a model over stages: everything exactly once, and evenly."""

import pytest

from engine.errors import ConfigError
from engine.model.config import ModelConfig
from engine.stages import describe, plan_stages


def shape(
    *, num_layers: int = 12, vocab_size: int = 1000, is_tied: bool = True, intermediate_size: int = 128
) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_size=16,
        max_context=256,
        has_tied_embeddings=is_tied,
    )


@pytest.mark.parametrize("num_layers", [1, 5, 12, 13])
@pytest.mark.parametrize("num_stages", [1, 2, 4, 5])
def test_every_layer_and_every_token_belongs_to_one_stage(num_layers: int, num_stages: int) -> None:
    if num_stages > num_layers:
        return
    plans = plan_stages(shape(num_layers=num_layers), num_stages)
    assert [layer for plan in plans for layer in plan.layers] == list(range(num_layers))
    assert [token for plan in plans for token in range(plan.first_token, plan.last_token)] == list(range(1000))
    counts = [plan.num_layers for plan in plans]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_stages_have_the_models_parameters_and_each_the_last_norm(is_tied: bool) -> None:
    config = shape(num_layers=5, is_tied=is_tied)
    plans = plan_stages(config, 3)
    assert sum(plan.num_parameters for plan in plans) == config.num_parameters + 2 * config.hidden_size


def test_layers_left_over_go_to_the_middle_first() -> None:
    assert [plan.num_layers for plan in plan_stages(shape(num_layers=10), 4)] == [2, 3, 3, 2]
    assert [plan.num_layers for plan in plan_stages(shape(num_layers=5), 2)] == [3, 2]


def test_the_report_names_layers_and_the_slowest_stage() -> None:
    line = describe(plan_stages(shape(num_layers=5), 2))
    assert line.startswith("2 stages of layers 0-2, 3-4; the slowest has 1.1")


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"8 stages are more than the model's 4 layers; .* choose --stages 4 or fewer"
    ):
        plan_stages(shape(num_layers=4), 8)


def test_no_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="the number of stages is 0; expected at least 1"):
        plan_stages(shape(), 0)
