"""Writes partitioned checkpoints (`partition.py`): validate, write stage by stage, verify, publish.

Each step is a function, so that a flow can run, retry and watch them one by one; `partition_model` is all of them.
Everything is written into `OUT.unfinished/` beside the goal and renamed once it has been read back and found right, so
there is never half a partition under the name that was asked for. What is finished is not written again: an interrupted
run goes on where it stopped. Of a model no more than one layer is held at a time.
"""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import orbax.checkpoint as ocp

from engine.errors import PartitionError
from engine.stages import StagePlan, plan_stages
from engine.weights.fingerprint import fingerprint
from engine.weights.layerwise import layerwise_logits
from engine.weights.load import open_parameters, read_model_config
from engine.weights.parameters import Index, ParameterPath, Parameters, parameter_shapes, whole
from engine.weights.partition import (
    MANIFEST,
    UNFINISHED,
    VOCABULARY_PART,
    FileEntry,
    Manifest,
    StageEntry,
    check_present,
    describe_bytes,
    is_partition,
    name_of,
    read_manifest,
    read_stage,
    sealed,
    vocabulary_axis,
)

OnBytes = Callable[[int], None]
"""Told how many bytes more are done."""

_BESIDE = ("*.json", "tokenizer.model", "*.txt", "*.md")
_CHECK_TOKENS = 8
_LOGITS_TOLERANCE = 1e-5
"""Of the largest logit: the same weights in the same program differ by nothing, or by the order of a sum."""
_DISK_SLACK = 1 << 26


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be partitioned, as it was found; the same job goes on where an interrupted one stopped."""

    model: str
    num_stages: int
    out: str
    fingerprint: str
    num_bytes: int
    """Of weights, over all stages."""
    num_layers: int

    @property
    def unfinished(self) -> Path:
        """Where it is written."""
        return Path(f"{self.out}.unfinished")


class Parted(msgspec.Struct, frozen=True, kw_only=True):
    """A finished partition."""

    directory: str
    num_bytes: int
    num_stages: int
    is_new: bool
    """False for one that was there already."""
    logits_difference: float
    """Largest difference of a logit, as a share of the largest logit; 0 for one that was there already."""


def partition_model(
    model: Path, num_stages: int, out: Path, *, on_progress: Callable[[str, int, int], None] = lambda *_: None
) -> Parted:
    """Partition a model directory, or a partition into another number of stages.

    `on_progress` gets what is done, the bytes done and the bytes of all: each is written and read back once. Raises
    ModelError or ConfigError.
    """
    job = validate(model, num_stages, out)
    if is_there_already(job):
        return Parted(
            directory=job.out, num_bytes=job.num_bytes, num_stages=num_stages, is_new=False, logits_difference=0.0
        )
    done = 0

    def count(what: str) -> OnBytes:
        def add(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            on_progress(what, done, 2 * job.num_bytes)

        return add

    with lock(job):
        for stage in range(num_stages):
            write_stage(job, stage, on_bytes=count(f"writing stage {stage}"))
        for stage in range(num_stages):
            verify_stage(job, stage, on_bytes=count(f"checking stage {stage}"))
        on_progress("comparing logits", 2 * job.num_bytes, 2 * job.num_bytes)
        difference = verify_logits(job)
        publish(job)
    return Parted(
        directory=job.out, num_bytes=job.num_bytes, num_stages=num_stages, is_new=True, logits_difference=difference
    )


def validate(model: Path, num_stages: int, out: Path) -> Job:
    """Look at model, number of stages and goal before anything is written; raises ModelError or ConfigError."""
    config = read_model_config(model)
    plan_stages(config, num_stages)
    model, out = model.resolve(), out.absolute()
    with open_parameters(model) as parameters:
        sizes = {path: parameters.dtype_of(path).itemsize for path in parameter_shapes(config)}
    num_bytes = 0
    for path, shape in parameter_shapes(config).items():
        num_bytes += int(np.prod(shape)) * sizes[path] * (num_stages if path[0] == "norm" else 1)
    job = Job(
        model=str(model), num_stages=num_stages, out=str(out), fingerprint=fingerprint(model), num_bytes=num_bytes,
        num_layers=config.num_layers,
    )  # fmt: skip
    if out.exists():
        if not is_there_already(job):
            raise PartitionError(
                f"{out} exists and is not this model in {num_stages} stages; expected no such directory; "
                "choose another --out, or remove it"
            )
        return job
    if not out.parent.is_dir():
        raise PartitionError(
            f"{out.parent} is no directory; expected one that {out.name} can be made in; make it first"
        )
    missing = num_bytes - _bytes_in(job.unfinished)
    free = shutil.disk_usage(out.parent).free
    if missing + _DISK_SLACK > free:
        raise PartitionError(
            f"the partition needs {missing / 1e9:.1f} GB more in {out.parent}; expected as much, {free / 1e9:.1f} GB "
            "are free; make room, or choose another --out"
        )
    return job


def is_there_already(job: Job) -> bool:
    """Tell whether the goal holds this partition, finished and complete in size."""
    out = Path(job.out)
    if not is_partition(out):
        return False
    manifest = read_manifest(out)
    if manifest.fingerprint != job.fingerprint or len(manifest.stages) != job.num_stages:
        return False
    for stage in range(job.num_stages):
        check_present(out, manifest, stage)
    return True


@contextlib.contextmanager
def lock(job: Job) -> Iterator[None]:
    """Keep other runs from writing the same partition meanwhile; raises PartitionError if one does."""
    job.unfinished.mkdir(exist_ok=True)
    with (job.unfinished / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PartitionError(
                f"another run is writing {job.unfinished}; expected none; wait for it, or choose another --out"
            ) from None
        yield


def write_stage(job: Job, stage: int, *, on_bytes: OnBytes = lambda _: None) -> int:
    """Write what a stage lacks, an Orbax checkpoint per layer; return the bytes that it has then."""
    begin(job)
    num_bytes = 0
    with open_parameters(Path(job.model)) as parameters:
        plan = plan_stages(parameters.config, job.num_stages)[stage]
        parts = parts_of(parameters, plan)
    for part, chosen in parts.items():
        entries = _finished(job, stage, part)
        if entries is None:
            # Opened anew for each part: pages of a mapped file count as memory until it is closed.
            with open_parameters(Path(job.model)) as parameters:
                entries = _write_part(job, parameters, stage, part, chosen)
        size = sum(entry.num_bytes for _, entry in entries.values())
        on_bytes(size)
        num_bytes += size
    return num_bytes


def begin(job: Job) -> None:
    """Make the unfinished directory, or make sure that it is this job's; raises PartitionError."""
    job.unfinished.mkdir(exist_ok=True)
    path = job.unfinished / UNFINISHED
    if path.exists():
        try:
            same = msgspec.json.decode(path.read_bytes(), type=Job)
        except msgspec.DecodeError:
            same = None
        if same is None or (same.fingerprint, same.num_stages) != (job.fingerprint, job.num_stages):
            raise PartitionError(
                f"{job.unfinished} is left from partitioning another model or into other stages; expected this one's; "
                "remove it, or choose another --out"
            )
        return
    _write_whole(path, msgspec.json.encode(job))


def parts_of(parameters: Parameters, plan: StagePlan) -> dict[str, dict[ParameterPath, Index]]:
    """Return which parameters, and which part of each, go into which Orbax checkpoint of a stage."""
    parts: dict[str, dict[ParameterPath, Index]] = {VOCABULARY_PART: {}}
    for path, shape in parameter_shapes(parameters.config).items():
        index = list(whole(shape))
        if path[0] == "layers":
            if path[1] in plan.layers:
                parts.setdefault(f"layers.{path[1]}", {})[path] = tuple(index)
            continue
        if (axis := vocabulary_axis(path)) is not None:
            index[axis] = slice(plan.first_token, plan.last_token)
        parts[VOCABULARY_PART][path] = tuple(index)
    return parts


def verify_stage(job: Job, stage: int, *, on_bytes: OnBytes = lambda _: None) -> int:
    """Read a stage back from its files and compare checksums with those of what was read from the model.

    Returns the bytes compared; raises PartitionError. The directory can be read as a partition from then on, though
    only under its unfinished name.
    """
    manifest = assemble(job)
    _write_whole(job.unfinished / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    num_bytes = 0
    for _, array in read_stage(job.unfinished, stage):
        num_bytes += array.nbytes
        on_bytes(array.nbytes)
    return num_bytes


def verify_logits(job: Job) -> float:
    """Compare logits of the model and of the unfinished partition, read layer by layer.

    Returns the largest difference as a share of the largest logit; raises PartitionError if that is no rounding.
    """
    config = read_model_config(Path(job.model))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, min(_CHECK_TOKENS, config.max_context))
    expected = layerwise_logits(partial(open_parameters, Path(job.model)), tokens)
    got = layerwise_logits(partial(open_parameters, job.unfinished), tokens)
    difference = float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-30))
    if not difference <= _LOGITS_TOLERANCE:
        raise PartitionError(
            f"the partition in {job.unfinished} computes other logits than {job.model}: they differ by "
            f"{difference:.1e} of the largest, expected at most {_LOGITS_TOLERANCE:.0e}; remove it and partition again"
        )
    return difference


def publish(job: Job) -> Manifest:
    """Give the finished partition its name, in one step; raises PartitionError if that is taken."""
    manifest = assemble(job)
    _write_whole(job.unfinished / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    if Path(job.out).exists():
        raise PartitionError(f"{job.out} came to be meanwhile; expected no such directory; remove it and try again")
    for stage in range(job.num_stages):
        for record in (job.unfinished / f"stage-{stage}").glob("*.json"):
            record.unlink()
    (job.unfinished / UNFINISHED).unlink()
    (job.unfinished / "lock").unlink(missing_ok=True)
    job.unfinished.rename(job.out)
    return manifest


def assemble(job: Job) -> Manifest:
    """Return the manifest of an unfinished partition all of whose stages are written; raises PartitionError."""
    model = Path(job.model)
    files = {}
    for name in sorted({path.name for pattern in _BESIDE for path in model.glob(pattern)}):
        if name not in (MANIFEST, UNFINISHED) and not name.endswith(".safetensors.index.json"):
            data = (model / name).read_bytes()
            _write_whole(job.unfinished / name, data)
            files[name] = describe_bytes(data)
    config = read_model_config(model)
    stages = []
    with open_parameters(model) as parameters:
        for plan in plan_stages(config, job.num_stages):
            found: dict[str, tuple[str, FileEntry]] = {}
            for part in parts_of(parameters, plan):
                entries = _finished(job, plan.index, part)
                if entries is None:
                    raise PartitionError(
                        f"{part} of stage {plan.index} is not written yet in {job.unfinished}; expected all stages; "
                        "write the stage first"
                    )
                found |= entries
            stages.append(
                StageEntry(
                    first_layer=plan.first_layer,
                    num_layers=plan.num_layers,
                    first_token=plan.first_token,
                    last_token=plan.last_token,
                    parameters=found,
                )
            )
    manifest = Manifest(model=model.name, fingerprint=job.fingerprint, stages=tuple(stages), files=files)
    return sealed(manifest)


def _write_part(
    job: Job, parameters: Parameters, stage: int, part: str, chosen: dict[ParameterPath, Index]
) -> dict[str, tuple[str, FileEntry]]:
    directory = job.unfinished / f"stage-{stage}" / part
    directory.parent.mkdir(exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    arrays = {
        name_of(path): np.ascontiguousarray(parameters.read(path, index, dtype=parameters.dtype_of(path)))
        for path, index in chosen.items()
    }
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with _without_warnings(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(arrays))
    entries = {}
    for name, array in arrays.items():
        file = directory / name / ".".join("0" * array.ndim)
        entries[name] = (str(file.relative_to(job.unfinished)), describe_bytes(array))
        with file.open("rb") as written:  # on the disk before anything says that it is
            os.fsync(written.fileno())
    _write_whole(_record(job, stage, part), msgspec.json.encode(entries))
    return entries


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Orbax warns of every checkpoint that it has nothing to merge: there is no OCDBT in plain files."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _finished(job: Job, stage: int, part: str) -> dict[str, tuple[str, FileEntry]] | None:
    """Return the files of a part that an earlier run finished, or None."""
    try:
        record = _record(job, stage, part).read_bytes()
        entries = msgspec.json.decode(record, type=dict[str, tuple[str, FileEntry]])
        if all((job.unfinished / file).stat().st_size == entry.num_bytes for file, entry in entries.values()):
            return entries
    except (OSError, msgspec.DecodeError):
        pass
    return None


def _record(job: Job, stage: int, part: str) -> Path:
    return job.unfinished / f"stage-{stage}" / f"{part}.json"


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there with all of its content, or as it was before."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else 0
