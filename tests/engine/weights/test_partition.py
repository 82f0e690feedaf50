"""Partitioned checkpoints: the same model, whichever way it is read, and nothing that was changed or is missing."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from engine.errors import ConfigError, PartitionError
from engine.stages import plan_stages
from engine.weights import partitioning
from engine.weights.fingerprint import fingerprint
from engine.weights.layerwise import layerwise_logits
from engine.weights.load import load_model, open_parameters, read_model_config
from engine.weights.partition import Manifest, read_manifest, read_stage, require_stages
from engine.weights.partitioning import partition_model

MODELS = Path(__file__).parents[2] / "fixtures" / "models"
MODEL = MODELS / "untied-gqa"


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parted") / "two"
    partition_model(MODEL, 2, out)
    return out


@pytest.fixture
def copy(parted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parted, tmp_path / "copy"))


def assert_same_model(one: Path, other: Path) -> None:
    left, right = (load_model(directory, dtype=jnp.float32).weights for directory in (one, other))
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(("variant", "num_stages"), [("untied-gqa", 1), ("tied-gqa", 2), ("tiny-starcoder2", 2)])
def test_a_partition_is_loaded_as_the_same_model_under_the_same_name(
    variant: str, num_stages: int, tmp_path: Path
) -> None:
    progress: list[tuple[str, int, int]] = []
    done = partition_model(
        MODELS / variant, num_stages, tmp_path / "out", on_progress=lambda *step: progress.append(step)
    )
    assert_same_model(tmp_path / "out", MODELS / variant)
    assert fingerprint(tmp_path / "out") == fingerprint(MODELS / variant)
    assert done.is_new
    assert done.logits_difference == 0
    assert progress[-1] == ("comparing logits", 2 * done.num_bytes, 2 * done.num_bytes)
    assert [step[1] for step in progress] == sorted(step[1] for step in progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_stage_has_its_layers_its_share_of_the_vocabulary_and_the_last_norm(parted: Path) -> None:
    plan = plan_stages(read_model_config(MODEL), 2)[1]
    whole = load_model(MODEL, dtype=jnp.float32).weights
    stage = {name: array.astype(np.float32) for name, array in read_stage(parted, 1)}
    assert {int(name.split(".")[1]) for name in stage if name.startswith("layers.")} == set(plan.layers)
    tokens = slice(plan.first_token, plan.last_token)
    np.testing.assert_array_equal(stage["embedding"], whole["embedding"][tokens])
    np.testing.assert_array_equal(stage["head.kernel"], whole["head"]["kernel"][:, tokens])
    np.testing.assert_array_equal(stage["norm.scale"], whole["norm"]["scale"])


def test_orbax_reads_the_same_arrays(parted: Path) -> None:
    ours = dict(read_stage(parted, 0))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        for part in sorted(path for path in (parted / "stage-0").iterdir()):
            names = [path.name for path in part.iterdir() if path.is_dir()]
            how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            restored = checkpointer.restore(part, args=ocp.args.PyTreeRestore(restore_args=how))
            for name in names:
                np.testing.assert_array_equal(restored[name], ours.pop(name))
    assert not ours


def test_a_host_reads_its_own_stage_where_no_other_is(copy: Path) -> None:
    shutil.rmtree(copy / "stage-0")
    whole = load_model(MODEL, dtype=jnp.float32).weights
    with open_parameters(copy, stages=[1]) as parameters:
        plan = plan_stages(parameters.config, 2)[1]
        layer, (size_in, size_out) = plan.first_layer, whole["layers"][plan.first_layer]["qkv"]["kernel"].shape
        got = parameters.read(
            ("layers", layer, "qkv", "kernel"), (slice(1, size_in), slice(0, 5)), dtype=np.dtype(np.float32)
        )
        np.testing.assert_array_equal(got, whole["layers"][layer]["qkv"]["kernel"][1:, :5])
        with pytest.raises(PartitionError, match=r"layers\.0\.qkv\.kernel is in no stage of .* that was opened; expe"):
            parameters.read(("layers", 0, "qkv", "kernel"), (slice(0, 1), slice(0, size_out)), dtype=got.dtype)
        with pytest.raises(PartitionError, match=r"tokens 0 to 3 of embedding are in several stages of .*; open the"):
            parameters.read(("embedding",), (slice(0, 3), slice(0, 4)), dtype=got.dtype)
    with pytest.raises(PartitionError, match=r"stage 0 of 2 is missing in .*: expected stage-0/ there; copy it from"):
        load_model(copy, dtype=jnp.float32)


def test_a_partition_is_partitioned_again_into_other_stages(parted: Path, tmp_path: Path) -> None:
    partition_model(parted, 1, tmp_path / "one")
    assert_same_model(tmp_path / "one", MODEL)
    assert fingerprint(tmp_path / "one") == fingerprint(MODEL)


def test_layerwise_logits_are_the_models(parted: Path) -> None:
    with np.load(MODEL / "reference.npz", allow_pickle=False) as reference:
        tokens, expected = reference["tokens"][0], reference["logits"][0]
    got = layerwise_logits(partial(open_parameters, parted), tokens)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


# What goes wrong


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def weight_of(directory: Path) -> Path:
    return directory / "stage-1" / "layers.1" / "layers.1.down.kernel" / "0.0"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda d: change_byte(weight_of(d)),
            r"0\.0 was changed or is damaged: block 0 of 1 has another checksum",
        ),
        (lambda d: cut_short(weight_of(d)), r"0\.0 has [\d,]+ bytes; expected [\d,]+ by partition.json; copy the file"),
        (lambda d: weight_of(d).unlink(), r"0\.0 cannot be read \(No such file or directory\); expected [\d,]+ bytes"),
        (lambda d: change_byte(d / "config.json"), r"config.json .*"),
        (lambda d: (d / "partition.json").unlink(), r"never finished: expected partition.json, got none; run `cloudc"),
        (lambda d: (d / "partition.json").write_text("{"), r"partition.json cannot be read \(.*\); expected what"),
        (lambda d: rewrite_manifest(d, format=7), r"partition.json is of format 7; expected 1; partition the model"),
        (lambda d: rewrite_manifest(d, model="x"), r"was changed after it was written: its digest does not agree"),
    ],
    ids=["changed", "cut", "gone", "config", "unfinished", "no-json", "format", "manifest"],
)
def test_what_was_changed_or_is_not_there_is_refused(spoil: Callable[[Path], None], message: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(Exception, match=message):
        load_model(copy, dtype=jnp.float32)


def rewrite_manifest(directory: Path, **changes: object) -> None:
    path = directory / "partition.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_number_of_stages_is_refused_with_the_command_that_repartitions(parted: Path) -> None:
    require_stages(parted, 2)
    require_stages(parted, 1)
    message = (
        f"{parted} is partitioned for 2 stages; expected 4, as many as the mesh has; run `cloudcomplete partition "
        f"{parted} --stages 4 --out {parted}-4-stages`, or choose --stages 2"
    )
    with pytest.raises(PartitionError, match=re.escape(message)):
        require_stages(parted, 4)
    with pytest.raises(PartitionError, match=r"has 2 stages; expected a stage below that, got 2; partition the model"):
        next(read_stage(parted, 2))


def test_more_stages_than_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="99 stages are more than the model's"):
        partition_model(MODEL, 99, tmp_path / "out")


def test_a_goal_that_is_taken_is_refused_unless_it_is_the_same_partition(copy: Path, tmp_path: Path) -> None:
    assert not partition_model(MODEL, 2, copy).is_new
    message = r"copy exists and is not this model in 1 stages; expected no such directory; choose another --out, or"
    with pytest.raises(PartitionError, match=message):
        partition_model(MODEL, 1, copy)
    with pytest.raises(PartitionError, match=r"is no directory; expected one .*out.* in; make it first"):
        partition_model(MODEL, 1, tmp_path / "none" / "out")


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitioning.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(PartitionError, match=r"needs 0\.0 GB more in .*; expected as much, 0\.0 GB are free; make"):
        partition_model(MODEL, 2, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    plain = partitioning._write_part

    def until_the_third(*arguments: object) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(str(arguments[3]))
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(partitioning, "_write_part", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        partition_model(MODEL, 2, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.unfinished"]
    with pytest.raises(PartitionError, match="never finished"):
        load_model(copied_with_config(tmp_path / "out.unfinished"), dtype=jnp.float32)
    with pytest.raises(PartitionError, match=r"left from partitioning another model or into other stages; expected th"):
        partition_model(MODELS / "tied-gqa", 2, tmp_path / "out")
    job = partitioning.validate(MODEL, 2, tmp_path / "out")
    with pytest.raises(PartitionError, match=r"vocabulary of stage 1 is not written yet in .*; write the stage first"):
        partitioning.publish(job)
    first, written[:] = list(written), []
    monkeypatch.setattr(partitioning, "_write_part", lambda *a: (written.append(str(a[3])), plain(*a))[1])
    partition_model(MODEL, 2, tmp_path / "out")
    assert sorted(first + written) == ["layers.0", "layers.1", "vocabulary", "vocabulary"]
    assert_same_model(tmp_path / "out", MODEL)


def copied_with_config(directory: Path) -> Path:
    shutil.copy(MODEL / "config.json", directory)
    return directory


def test_two_runs_do_not_write_the_same_partition(tmp_path: Path) -> None:
    job = partitioning.validate(MODEL, 2, tmp_path / "out")
    with partitioning.lock(job), pytest.raises(PartitionError, match=r"another run is writing .*; wait for it, or ch"):
        partition_model(MODEL, 2, tmp_path / "out")


def test_what_was_written_wrongly_is_found_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = partitioning.validate(MODEL, 2, tmp_path / "out")
    for stage in range(2):
        partitioning.write_stage(job, stage)
    change_byte(weight_of(job.unfinished))
    with pytest.raises(PartitionError, match="was changed or is damaged"):
        partitioning.verify_stage(job, 1)
    change_byte(weight_of(job.unfinished))
    partitioning.verify_stage(job, 1)
    plain, shifts = partitioning.layerwise_logits, iter((0.0, 0.5))
    monkeypatch.setattr(partitioning, "layerwise_logits", lambda *a: plain(*a) + next(shifts))
    with pytest.raises(PartitionError, match=r"computes other logits than .*: they differ by .* of the largest, exp"):
        partitioning.verify_logits(job)
    (tmp_path / "out").mkdir()
    with pytest.raises(PartitionError, match="came to be meanwhile; expected no such directory; remove it and try"):
        partitioning.publish(job)


def test_the_manifest_says_what_lies_where(parted: Path) -> None:
    manifest: Manifest = read_manifest(parted)
    assert manifest.num_bytes == sum(
        (parted / file).stat().st_size for stage in manifest.stages for file, _ in stage.parameters.values()
    )
    assert "config.json" in manifest.files
