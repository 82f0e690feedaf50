"""The model that `bench partition` writes is one that can be loaded."""

from pathlib import Path

import jax.numpy as jnp

from engine.weights.load import load_model
from loadtest.benchmarks.partition import write_random_model

SMALL = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip


def test_the_random_model_is_whole_and_its_weights_are_in_range(tmp_path: Path) -> None:
    num_bytes = write_random_model(tmp_path / "model", SMALL, lambda _: None)
    loaded = load_model(tmp_path / "model", dtype=jnp.bfloat16)
    assert num_bytes == 2 * loaded.config.num_parameters
    kernel = jnp.abs(loaded.weights["layers"][1]["qkv"]["kernel"].astype(jnp.float32))
    assert 2**-7 <= float(kernel.min()) < float(kernel.max()) < 2**-5
