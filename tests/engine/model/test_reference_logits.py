"""Our logits against those of the reference implementation, on the tiny models of `tests/fixtures`."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from flax import nnx

from engine.model.transformer import Transformer, attend_causally
from engine.weights.load import LoadedModel, load_model

MODELS = Path(__file__).parents[2] / "fixtures" / "models"
VARIANTS = sorted(path.name for path in MODELS.iterdir())


def logits_of(model: LoadedModel, tokens: np.ndarray, **changed_facts: Any) -> np.ndarray:
    """Compute logits; `changed_facts` of the config must leave the parameters as they are."""
    config = msgspec.structs.replace(model.config, **changed_facts)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    attend = partial(attend_causally, windows=config.windows)

    @jax.jit
    def compute(weights: dict[str, Any], tokens: jax.Array) -> jax.Array:
        transformer = nnx.merge(graphdef, weights)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return transformer.logits(transformer(tokens, positions, attend))

    return np.asarray(compute(model.weights, jnp.asarray(tokens)))


def relative_error(directory: Path, *, dtype: Any = jnp.float32, **changed_facts: Any) -> float:
    with np.load(directory / "reference.npz", allow_pickle=False) as reference:
        tokens, expected = reference["tokens"], reference["logits"]
    got = logits_of(load_model(directory, dtype=dtype), tokens, **changed_facts)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_match_the_reference_implementation(variant: str) -> None:
    assert relative_error(MODELS / variant) < 1e-5


def test_logits_in_bfloat16_match_the_reference_as_closely_as_its_precision_allows() -> None:
    assert relative_error(MODELS / "untied-gqa", dtype=jnp.bfloat16) < 0.1


@pytest.mark.parametrize("variant", ["llama3-rope", "linear-rope-old-config"])
def test_the_models_with_rope_scaling_would_show_that_it_was_left_out(variant: str, tmp_path: Path) -> None:
    directory = tmp_path / variant
    shutil.copytree(MODELS / variant, directory)
    hf = json.loads((directory / "config.json").read_text())
    for rope in (hf.get("rope_parameters"), hf.get("rope_scaling")):
        if rope:
            rope.pop("rope_type", None)
            rope.pop("type", None)
    (directory / "config.json").write_text(json.dumps(hf))
    assert relative_error(directory) > 0.01


@pytest.mark.parametrize(
    ("variant", "changed_facts"),
    [
        ("mistral-window-old-config", {"windows": ()}),
        ("qwen2-windows", {"windows": ()}),
        ("qwen2-windows-old-config", {"windows": (24, 24)}),
        ("tiny-starcoder2", {"windows": (25, 25)}),
        ("tiny-starcoder2", {"activation": "gelu"}),
        ("tiny-gemma", {"activation": "gelu"}),
        ("tiny-gemma", {"norm_offset": 0.0}),
        ("tiny-gemma", {"embedding_scale": 1.0}),
    ],
)
def test_the_models_of_a_family_would_show_that_what_is_special_to_it_was_left_out(
    variant: str, changed_facts: dict[str, Any]
) -> None:
    assert relative_error(MODELS / variant, **changed_facts) > 1e-4
