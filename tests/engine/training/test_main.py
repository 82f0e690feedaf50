import json
import tarfile

import msgspec
import pytest
from typer.testing import CliRunner

from engine.training.__main__ import GPU_CONFIG, app, load_config
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


def test_a_sprint_trains_in_bfloat16_from_a_packed_corpus_to_an_exported_model_in_parts(
    work, config_file, tmp_path_factory
) -> None:
    there = tmp_path_factory.mktemp("there")
    result = CliRunner().invoke(app, ["pack", str(there / "packed"), "--work", str(work)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = config_file.read_text().replace('products = "auto"', 'products = "bfloat16"')
    config_file.write_text(text.replace("num_processes = 0", "num_processes = 1"))
    options = ["--config", str(config_file), "--work", str(there / "work"), "--stable-seconds", "1"]
    arguments = [str(there / "packed"), str(there / "out"), *options, "--decay-seconds", "1"]
    result = CliRunner().invoke(app, ["sprint", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (there / "out").iterdir()) == ["log.jsonl", "model.tar.000"]
    with tarfile.open(there / "out" / "model.tar.000") as archive:
        assert "model/model.safetensors" in archive.getnames()


def test_the_gpu_model_travels_back_in_what_may_travel() -> None:
    model = load_config(GPU_CONFIG).shape.resolve()
    assert 25e6 < model.num_parameters < 30e6
    assert 2 * model.num_parameters < 60 * 2**20


def test_rows_are_made_from_the_command_line(work) -> None:
    result = CliRunner().invoke(app, ["rows", str(work / "rows.jsonl"), "--work", str(work), "--lines", "7"])
    assert json.loads(result.output) == {"python": 7}
    assert len((work / "rows.jsonl").read_bytes().splitlines()) == 7
    result = CliRunner().invoke(app, ["rows", str(work / "no"), "--work", str(work), "--cursor", "word"])
    assert result.exit_code == 2


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
