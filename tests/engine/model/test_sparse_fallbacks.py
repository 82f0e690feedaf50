"""Requests that ask for block-sparse attention and cannot have it, through a real engine: dense answers, counted."""

import dataclasses

import jax
import jax.numpy as jnp
import msgspec
import pytest

from engine.engine import Engine
from engine.model.config import ModelConfig
from engine.types import Request, SamplingParams
from engine.weights.load import LoadedModel, random_model
from tests.engine.conftest import Recorder
from tests.engine.real_engine import Given, run

MODEL = ModelConfig(
    family="llama", vocab_size=384, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
    head_size=16, max_context=512, has_tied_embeddings=True,
)  # fmt: skip
LONG = "".join(f"value_{i} = compute({i})\n" for i in range(60))


def ask(engine: Engine, before: str, name: str, **fields) -> Recorder:
    sampling = SamplingParams(max_tokens=12)
    [recorder] = run(engine, [Request(request_id=name, before=before, sampling=sampling, **fields)])
    assert recorder.finish.state == "finished"
    return recorder


def random(*, are_scores_equal: bool = False, **facts) -> LoadedModel:
    """A model; with `are_scores_equal` its queries are nothing, so every key gets the same attention."""
    loaded = random_model(msgspec.structs.replace(MODEL, **facts), seed=4, dtype=jnp.float32)
    if not are_scores_equal:
        return loaded

    def without_queries(path, leaf):
        size = MODEL.num_heads * MODEL.head_size
        is_qkv = "qkv" in jax.tree_util.keystr(path)
        return leaf.at[..., :size].set(0) if is_qkv else leaf

    return dataclasses.replace(loaded, weights=jax.tree_util.tree_map_with_path(without_queries, loaded.weights))


@pytest.mark.parametrize(
    ("reason", "before", "facts", "num_kept"),
    [
        ("window", LONG, {"windows": (None, 40)}, 4),
        ("short", "x = ", {}, 4),
        ("all_kept", LONG, {}, 8),
        ("equal", LONG, {"are_scores_equal": True}, 4),
    ],
)
def test_what_cannot_be_sparse_gets_the_dense_answer_and_is_counted(
    tokenizer, template, reason: str, before: str, facts: dict, num_kept: int
) -> None:
    engine = Given(tokenizer, template).engine(random(**facts), drafts=False, sparse_blocks=num_kept)
    asked = ask(engine, before, "sparse", sparse="on")
    assert asked.finish.usage.num_prompt_tokens > 4 * 64 or reason == "short"
    told = engine.stats()
    assert told.num_sparse_fallbacks == {reason: 1}, "once, however many layers and chunks there were"
    assert told.num_sparse == (reason == "equal"), "that the scores are equal shows only while they are computed"
    assert told.num_kept_blocks == told.num_visible_blocks
    dense = ask(engine, before, "dense", sparse="off", is_fresh=True)
    assert asked.text == dense.text
    again = ask(engine, before, "again", sparse="off")
    assert again.finish.usage.num_reused_tokens > 0, "its KV is as good as dense attention's"
    assert again.text == dense.text


def test_what_can_be_sparse_is(tokenizer, template) -> None:
    """Else nothing above would say anything."""
    engine = Given(tokenizer, template).engine(random(), drafts=False, sparse_blocks=4)
    ask(engine, LONG, "sparse", sparse="on")
    told = engine.stats()
    assert (told.num_sparse, told.num_sparse_fallbacks) == (1, {})
    assert 0 < told.num_kept_blocks < told.num_visible_blocks
