import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import pytest

from engine import paths, self_test
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.model.attention import native_attention, portable_attention
from engine.model.config import ModelConfig
from engine.model.matrix import Int8, Int8Panels, Panels
from engine.paths import choose_paths
from engine.plan import resolve

MODEL = ModelConfig(
    family="llama", vocab_size=70, hidden_size=16, intermediate_size=20, num_layers=1, num_heads=1, num_kv_heads=1,
    head_size=16, max_context=64, has_tied_embeddings=True,
)  # fmt: skip


@pytest.fixture
def found(monkeypatch) -> dict[str, str | None]:
    """What self-tests find; whatever a test does not put in passes."""
    results: dict[str, str | None] = {}
    monkeypatch.setattr(self_test, "verdicts", lambda checks, *_, **__: {check: results.get(check) for check in checks})
    return results


@pytest.fixture
def choose(kernels: Path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(paths.native, "build", lambda directory: kernels)

    def choose(model: ModelConfig = MODEL, **choices):
        config = EngineConfig(**choices)
        plan = resolve(config, model, available_bytes=1 << 30)
        return choose_paths(config, model, plan, directory=kernels.parent)

    return choose


def test_kernels_that_pass_are_used(choose, found) -> None:
    chosen = choose()
    assert (chosen.attention_name, chosen.attention, chosen.form) == ("native", native_attention, "panels")
    assert choose(weights="int8").form == "int8 panels"


def test_a_kernel_that_fails_its_self_test_is_left_with_the_reason(choose, found, caplog) -> None:
    found["panels"] = "its self-test was killed by SIGILL"
    chosen = choose()
    assert (chosen.attention_name, chosen.form, chosen.compiler_options) == ("native", "plain", {})
    assert "products on XLA: its self-test was killed by SIGILL" in caplog.text
    with pytest.raises(ConfigError, match=r"native products cannot be used: its .* choose engine.products = 'auto'"):
        choose(products="native")


def test_attention_and_products_fall_back_apart(choose, found) -> None:
    found["attention"] = "no"
    chosen = choose()
    assert (chosen.attention, chosen.form) == (portable_attention, "panels")
    assert choose(attention="xla", products="xla").form == "plain"


def test_a_kernel_that_is_slower_than_xla_is_left_with_the_reason_unless_it_was_asked_for(
    choose, found, caplog
) -> None:
    found["attention speed"] = "it takes 10.0 times as long as XLA"
    found["int8 panels speed"] = "it takes 1.4 times as long as XLA"
    chosen = choose()
    assert (chosen.attention_name, chosen.form) == ("xla", "panels")
    assert "attention on XLA: it takes 10.0 times as long" in caplog.text
    assert choose(attention="native", weights="int8").form == "int8"
    chosen = choose(attention="native", products="native", weights="int8")
    assert (chosen.attention_name, chosen.form) == ("native", "int8 panels")


def test_processes_that_share_a_mesh_choose_by_numbers_alone(choose, found, monkeypatch) -> None:
    """Their clocks would not agree, and weights in two forms make no one array."""
    found["panels speed"] = "it takes 1.4 times as long as XLA"
    assert choose().form == "plain"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert choose().form == "panels"


def test_without_a_compiler_the_engine_falls_back_and_says_why(choose, monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("CC", "/nowhere/cc")
    config = EngineConfig()
    plan = resolve(config, MODEL, available_bytes=1 << 30)
    monkeypatch.setattr(self_test, "verdicts", lambda checks, *_, **__: dict.fromkeys(checks))
    chosen = choose_paths(config, MODEL, plan, directory=tmp_path)
    assert (chosen.attention_name, chosen.form) == ("xla", "plain")
    assert "attention on XLA" in caplog.text
    assert "could not be built" in caplog.text


def test_an_odd_head_size_and_half_precision_fall_back(choose, found) -> None:
    assert choose(msgspec.structs.replace(MODEL, head_size=24)).attention_name == "xla"
    half = choose(dtype="bfloat16")
    assert (half.attention_name, half.form) == ("xla", "plain")
    assert choose(dtype="bfloat16", weights="int8").form == "int8 panels"


def test_wrong_products_of_xla_switch_its_fusions_off(choose, found, caplog) -> None:
    found["xla"] = "a product of 1 rows by 16 x 48 differs"
    assert choose(products="native").compiler_options == {}, "XLA has no product left to get wrong"
    assert choose(products="xla").compiler_options == self_test.WITHOUT_FUSIONS
    assert "the path xla of this jaxlib is left: a product of 1 rows" in caplog.text
    found["xla without fusions"] = "still differs"
    with pytest.raises(
        ConfigError, match=r"XLA computes wrong products .*: still differs; .* another version of jaxlib"
    ):
        choose(products="xla")


def test_int8_products_that_xla_gets_wrong_leave_plain_weights(choose, found) -> None:
    assert choose(products="xla", weights="int8").form == "int8"
    found["xla int8"] = "no"
    chosen = choose(products="xla", weights="int8")
    assert (chosen.form, chosen.compiler_options) == ("int8", self_test.WITHOUT_FUSIONS)
    found["xla int8 without fusions"] = "no"
    assert choose(products="xla", weights="int8").form == "plain"


def test_on_a_gpu_int8_is_for_weights_alone(choose, found, monkeypatch) -> None:
    plan = resolve(EngineConfig(), MODEL, available_bytes=1 << 30)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for weights, form in (("auto", "plain"), ("int8", "int8 weights")):
        chosen = choose_paths(EngineConfig(weights=weights), MODEL, plan, directory=Path())
        assert (chosen.attention, chosen.form, chosen.compiler_options) == (portable_attention, form, {})


def test_matrices_are_held_in_their_form_and_all_else_stays(choose, found) -> None:
    tied, untied = choose(), choose(msgspec.structs.replace(MODEL, has_tied_embeddings=False))
    matrix, scale = jnp.ones((64, 16)), jnp.ones((16,))
    assert isinstance(tied.hold(("layers", 0, "qkv", "kernel"), matrix), Panels)
    assert isinstance(tied.hold(("embedding",), matrix), Panels)
    assert untied.hold(("embedding",), matrix) is matrix, "a table that is only looked up"
    assert tied.hold(("norm", "scale"), scale) is scale
    int8 = choose(msgspec.structs.replace(MODEL, has_tied_embeddings=False), weights="int8")
    assert isinstance(int8.hold(("embedding",), matrix), Int8)
    assert isinstance(int8.hold(("head", "kernel"), matrix), Int8Panels)


@pytest.mark.parametrize("problem", [None, "it takes 3.0 times as long as XLA"])
def test_a_vendors_kernel_for_block_sparse_attention_is_used_unless_it_is_slower_than_xla(
    monkeypatch, caplog, problem: str | None
) -> None:
    plan = resolve(EngineConfig(), MODEL, available_bytes=1 << 30)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(paths, "sparse_difference", lambda *_, **__: 0.0)
    monkeypatch.setattr(paths, "race_sparse_attention", lambda *_, **__: problem)
    chosen = choose_paths(EngineConfig(), MODEL, plan, directory=Path())
    assert chosen.sparse_attention.keywords.get("implementation") == (None if problem else "cudnn")
    assert ("it takes 3.0 times as long" in caplog.text) == (problem is not None)
