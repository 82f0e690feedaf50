import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.model.config import ModelConfig
from engine.plan import resolve
from engine.prefix_store import BLOCK_TOKENS

MODEL = ModelConfig(
    family="llama", vocab_size=512, hidden_size=32, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1,
    head_size=16, max_context=1000,
)  # fmt: skip


def test_the_plan_joins_choices_and_facts() -> None:
    plan = resolve(EngineConfig(num_slots=6, prefill_chunk=100), MODEL, available_bytes=1 << 30)
    assert plan.max_context == 1000
    assert plan.shapes.row_buckets == (1, 2, 4, 6)
    assert plan.shapes.chunk_buckets == (32, 64, 100)
    assert plan.capacity >= 1000 + 100
    assert plan.num_blocks == 256_000_000 // (BLOCK_TOKENS * MODEL.kv_bytes_per_token)
    num_positions = 6 * plan.capacity + plan.num_blocks * BLOCK_TOKENS
    assert plan.kv_bytes == num_positions * MODEL.kv_bytes_per_token
    assert plan.dtype == "float32"
    assert plan.token_healing
    assert not resolve(EngineConfig(token_healing=False), MODEL, available_bytes=1 << 30).token_healing


def test_a_context_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine.max_context is 2,000 but the model was made for 1,000"):
        resolve(EngineConfig(max_context=2000), MODEL)


def test_kv_that_does_not_fit_is_refused_with_the_number_that_would() -> None:
    slot_bytes = resolve(EngineConfig(num_slots=1, prefix_store_mb=0), MODEL, available_bytes=1 << 30).kv_bytes
    with pytest.raises(ConfigError, match=r"16 slots of 1,000 tokens need .* store 1\.0 GB.* 3 slots would fit"):
        resolve(EngineConfig(prefix_store_mb=1000), MODEL, available_bytes=10**9 + int(3.5 * slot_bytes))


@pytest.mark.parametrize(("field", "value"), [("num_slots", 0), ("max_waiting", -1), ("prefill_chunk", 8)])
def test_a_choice_out_of_range_is_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"engine.{field} is {value}; expected at least"):
        resolve(EngineConfig(**{field: value}), MODEL)
