import json

import msgspec
import pytest
from typer.testing import CliRunner

from engine.training.__main__ import app, load_config
from engine.training.config import TrainingConfig
from engine.training.errors import CheckpointError, CorpusError, TrainingError
from engine.training.vocabulary import save_vocabulary


@pytest.fixture
def work(documents, tokenizer, tmp_path):
    (tmp_path / "documents.msgpack").write_bytes(msgspec.msgpack.encode(documents))
    save_vocabulary(tokenizer, tmp_path / "tokenizer.json")
    return tmp_path


@pytest.fixture
def config_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    settings = msgspec.to_builtins(config)
    shape, examples = settings.pop("shape"), settings.pop("examples")
    tables = [("", settings), ("[shape]", shape), ("[examples]", examples)]
    path.write_text(
        "".join(f"{head}\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in t.items()) for head, t in tables)
    )
    return path


def test_the_recipe_runs_from_a_corpus_to_an_exported_model(work, config_file) -> None:
    arguments = [
        "--work",
        str(work),
        "--config",
        str(config_file),
        "--out",
        str(work / "out"),
        "--steps",
        "2",
        "--decay-steps",
        "1",
    ]
    result = CliRunner().invoke(app, ["all", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "begun at step 0" in result.output
    assert (work / "out" / "model.safetensors").exists()
    again = CliRunner().invoke(app, ["all", *arguments], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    assert "resumed at step 3" in again.output


def test_a_new_run_can_begin_with_an_exported_model(work, config_file, tmp_path_factory) -> None:
    options = ["--work", str(work), "--config", str(config_file)]
    run = ["all", *options, "--out", str(work / "out"), "--steps", "2", "--decay-steps", "1"]
    CliRunner().invoke(app, run, catch_exceptions=False)
    again = tmp_path_factory.mktemp("again")
    for name in ("documents.msgpack", "tokenizer.json"):
        (again / name).write_bytes((work / name).read_bytes())
    train = ["train", "--work", str(again), "--config", str(config_file), "--steps", "1"]
    result = CliRunner().invoke(app, [*train, "--init-from", str(work / "out")], catch_exceptions=False)
    assert f"begun with {work / 'out'}, which has read {2 * 2 * 64 + 128:,} tokens" in result.output.replace("\n", "")
    result = CliRunner().invoke(app, [*train, "--init-from", str(work / "out")], catch_exceptions=False)
    assert "resumed at step 1" in result.output, "what is begun goes on"


def test_steps_out_of_order_say_what_to_run_first(work, tmp_path_factory) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to decay from"):
        CliRunner().invoke(app, ["decay", "--work", str(work)], catch_exceptions=False)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(CorpusError, match=r"run `python -m engine\.training corpus`"):
        CliRunner().invoke(app, ["train", "--work", str(empty)], catch_exceptions=False)
    (empty / "documents.msgpack").write_bytes((work / "documents.msgpack").read_bytes())
    with pytest.raises(CorpusError, match=r"run `python -m engine\.training vocabulary`"):
        CliRunner().invoke(app, ["train", "--work", str(empty)], catch_exceptions=False)


def test_a_misspelt_setting_is_named(tmp_path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[shape]\nhiden_size = 8\n")
    with pytest.raises(TrainingError, match=r"unknown field `hiden_size`"):
        load_config(path)
    assert load_config(None) == TrainingConfig()
