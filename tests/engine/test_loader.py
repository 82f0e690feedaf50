import shutil

import msgspec
import pytest

from engine.budgets import FixedBudgets, LearnedBudgets
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelConfigError
from engine.loader import compile_cache_directory, load_engine, load_replicas
from engine.types import Request, SamplingParams
from tests.engine.conftest import TINY_MODEL
from tests.engine.test_thread import Waiter


@pytest.fixture(scope="module")
def config(compile_cache) -> EngineConfig:
    """The smallest family of programs that there is."""
    return EngineConfig(num_slots=1, prefill_chunk=16, compile_cache=str(compile_cache))


def complete(engine, **sampling) -> str:
    waiter = Waiter()
    engine.submit(Request(request_id="a", before="x = ", sampling=SamplingParams(max_tokens=8, **sampling)), waiter)
    assert waiter.finish().state == "finished", waiter.finish().error
    return "".join(output.text for output in waiter.outputs)


def test_a_model_directory_becomes_a_running_engine(config) -> None:
    progress: list[str] = []
    engine = load_engine(TINY_MODEL, config, on_progress=progress.append)
    try:
        assert complete(engine) == complete(engine)
        assert engine.stats().num_recompiles == 0
    finally:
        engine.close(timeout_s=5)
    assert progress[-1] == "ready"


@pytest.mark.parametrize("products", ["native", "xla"])
def test_a_model_runs_with_int8_weights(config, products: str) -> None:
    engine = load_engine(TINY_MODEL, msgspec.structs.replace(config, weights="int8", products=products))
    try:
        assert complete(engine) == complete(engine)
    finally:
        engine.close(timeout_s=5)


def test_replicas_share_the_weights_and_can_be_added_while_they_run(config) -> None:
    replicas = load_replicas(TINY_MODEL, msgspec.structs.replace(config, num_replicas=2))
    try:
        replicas.add()
        assert len({complete(replicas) for _ in range(4)}) == 1
        assert replicas.stats().num_recompiles == 0
        assert replicas.identity
    finally:
        replicas.close(timeout_s=5)


def test_budgets_are_learned_only_when_that_is_asked_for(config) -> None:
    texts = set()
    for mode, kind in (("fixed", FixedBudgets), ("learned", LearnedBudgets)):
        engine = load_engine(TINY_MODEL, msgspec.structs.replace(config, budgets=mode))
        try:
            assert type(engine._engine._budgets) is kind
            texts.add(complete(engine))
        finally:
            engine.close(timeout_s=5)
    assert EngineConfig().budgets == "fixed"
    assert len(texts) == 1


def test_less_than_one_replica_is_refused(config) -> None:
    with pytest.raises(ConfigError, match=r"engine.num_replicas is 0; expected at least 1"):
        load_replicas(TINY_MODEL, msgspec.structs.replace(config, num_replicas=0))


def test_a_directory_without_a_model_is_refused(tmp_path, config) -> None:
    with pytest.raises(ModelConfigError):
        load_engine(tmp_path / "nothing", config)


def test_attention_that_cannot_be_had_is_refused_when_asked_for_by_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    with pytest.raises(ConfigError, match="native attention cannot be used"):
        load_engine(tmp_path / "model", EngineConfig(attention="native", compile_cache=str(tmp_path / "cache")))


def test_compiled_programs_are_kept_in_the_users_cache_directory(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache_directory(EngineConfig()) == tmp_path / "cloudcomplete" / "compiled"
