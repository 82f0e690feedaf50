import msgspec
import pytest

from engine import plan
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
    resolved = resolve(EngineConfig(num_slots=6, prefill_chunk=100), MODEL, available_bytes=1 << 30)
    assert resolved.max_context == 1000
    assert resolved.shapes.row_buckets == (1, 2, 4, 6)
    assert resolved.shapes.chunk_buckets == (32, 64, 100)
    assert resolved.capacity >= 1000 + 100
    assert resolved.num_blocks == 256_000_000 // (BLOCK_TOKENS * MODEL.kv_bytes_per_token)
    num_positions = 6 * resolved.capacity + resolved.num_blocks * BLOCK_TOKENS
    assert resolved.kv_bytes == num_positions * MODEL.kv_bytes_per_token
    assert resolved.dtype == "float32"
    assert resolved.token_healing
    assert not resolve(EngineConfig(token_healing=False), MODEL, available_bytes=1 << 30).token_healing


def test_a_context_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine.max_context is 2,000 but the model was made for 1,000"):
        resolve(EngineConfig(max_context=2000), MODEL)


def test_kv_that_does_not_fit_is_refused_with_the_number_that_would() -> None:
    slot_bytes = resolve(EngineConfig(num_slots=1, prefix_store_mb=0), MODEL, available_bytes=1 << 30).kv_bytes
    with pytest.raises(ConfigError, match=r"16 slots of 1,000 tokens need .* store 1\.0 GB.* 3 slots would fit"):
        resolve(EngineConfig(prefix_store_mb=1000), MODEL, available_bytes=10**9 + int(3.5 * slot_bytes))


def test_weights_that_are_not_loaded_yet_need_room_too() -> None:
    model = msgspec.structs.replace(MODEL, vocab_size=1_000_000)
    weights_bytes, config = model.num_parameters * 4, EngineConfig(num_slots=1, prefix_store_mb=0)
    free_bytes = weights_bytes + resolve(config, model, available_bytes=1 << 30).kv_bytes
    assert resolve(config, model, available_bytes=free_bytes, is_loaded=False).num_slots == 1
    with pytest.raises(ConfigError, match=r"0\.0 GB are free beside 0\.3 GB of weights; 0 slots would fit"):
        resolve(config, model, available_bytes=free_bytes - 1, is_loaded=False)


def test_what_the_system_keeps_of_files_counts_as_free(monkeypatch, tmp_path) -> None:
    (meminfo := tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 7 kB\n")
    monkeypatch.setattr(plan, "Path", lambda _: meminfo)
    assert plan.available_kv_bytes() == 7 * 1024
    meminfo.unlink()
    assert plan.available_kv_bytes() > 7 * 1024


@pytest.mark.parametrize(("field", "value"), [("num_slots", 0), ("max_waiting", -1), ("prefill_chunk", 8)])
def test_a_choice_out_of_range_is_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"engine.{field} is {value}; expected at least"):
        resolve(EngineConfig(**{field: value}), MODEL)


def test_a_model_with_windows_of_its_own_is_never_sparse() -> None:
    windowed = msgspec.structs.replace(MODEL, windows=(None, 64))
    assert resolve(EngineConfig(), windowed, available_bytes=1 << 40).sparse_problem == "window"
    assert resolve(EngineConfig(sparse="off"), MODEL, available_bytes=1 << 40).sparse_problem == "off"
    assert resolve(EngineConfig(), MODEL, available_bytes=1 << 40).sparse_problem is None


def test_too_few_blocks_to_keep_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.sparse_blocks is 3; expected at least 4"):
        resolve(EngineConfig(sparse_blocks=3), MODEL, available_bytes=1 << 40)
