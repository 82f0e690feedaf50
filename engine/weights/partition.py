"""Partitioned checkpoints: a model cut into stages, of which each host reads its own alone.

    DIR/
      partition.json            what belongs here: stages, files, sizes, checksums; written last
      config.json, tokenizer.json, ...
      stage-0/vocabulary/       an Orbax checkpoint: the stage's share of the vocabulary, and the last norm
      stage-0/layers.0/         an Orbax checkpoint per layer
      stage-1/ ...

Orbax writes each array as one file of plain bytes (`zarr`, neither packed nor divided), in our form: matrices are
`[in, out]`, Q, K and V lie in one and gate and up in another. So a file can be read in one pass that fills the array
and checks it, block by block on all cores, and what is used is what was checked; `orbax.checkpoint` reads the same
directories, and is the oracle of the tests.

This module only reads. Which layers and tokens a stage has is `engine/stages.py`, who writes is `partitioning.py`.
"""

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.errors import PartitionError
from engine.model.config import ModelConfig
from engine.weights.parameters import Index, ParameterPath, parameter_shapes, whole

MANIFEST = "partition.json"
UNFINISHED = "unfinished.json"
"""Beside the stages as long as a partition is being written."""
FORMAT = 1
BLOCK_BYTES = 1 << 24
"""Files are checked in blocks of this size, so that all cores can."""
_FILES_AHEAD = 2
"""Of a stage, so many arrays are being read while one is used."""
VOCABULARY_PART = "vocabulary"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file: an array as plain bytes in C order, or one of those beside the weights."""

    num_bytes: int
    blocks: tuple[str, ...]
    """SHA-256 of each block of `BLOCK_BYTES`."""
    shape: tuple[int, ...] = ()
    dtype: str = ""


class StageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: what of the model it has, and each parameter's file, relative to the partition's directory."""

    first_layer: int
    num_layers: int
    first_token: int
    last_token: int
    parameters: dict[str, tuple[str, FileEntry]]
    """`layers.3.qkv.kernel` -> where it is, what it is."""

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for _, entry in self.parameters.values())


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All of `partition.json`."""

    format: int = FORMAT
    model: str
    """The name of the directory that was partitioned."""
    fingerprint: str
    """What `weights/fingerprint.py` says of that directory: the same answers, so the same name."""
    stages: tuple[StageEntry, ...]
    files: dict[str, FileEntry]
    """Those beside the weights: config.json, tokenizer.json and their like."""
    digest: str = ""
    """SHA-256 of this file with an empty digest."""

    @property
    def num_bytes(self) -> int:
        return sum(stage.num_bytes for stage in self.stages)


def is_partition(directory: Path) -> bool:
    """Tell a partitioned checkpoint, whole or not, from a plain model directory."""
    return any((directory / name).exists() for name in (MANIFEST, UNFINISHED, "stage-0"))


def read_manifest(directory: Path) -> Manifest:
    """Read and check `partition.json`; raises PartitionError for one that is not finished or was changed."""
    path = directory / MANIFEST
    if not path.is_file():
        raise PartitionError(
            f"{directory} is a partitioned checkpoint that was never finished: expected {MANIFEST}, got none; "
            "run `cloudcomplete partition` with the same MODEL, --stages and --out again: it goes on where it stopped"
        )
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise PartitionError(
            f"{path} cannot be read ({error}); expected what `cloudcomplete partition` wrote; "
            "copy the file again, or partition the model again"
        ) from None
    if manifest.format != FORMAT:
        raise PartitionError(
            f"{path} is of format {manifest.format}; expected {FORMAT}; "
            "partition the model again with this version of cloudcomplete"
        )
    if sealed(manifest).digest != manifest.digest:
        raise PartitionError(
            f"{path} was changed after it was written: its digest does not agree with its content; "
            "copy the file again, or partition the model again"
        )
    return manifest


def sealed(manifest: Manifest) -> Manifest:
    """Return a manifest with its digest."""
    plain = msgspec.structs.replace(manifest, digest="")
    return msgspec.structs.replace(plain, digest=hashlib.sha256(msgspec.json.encode(plain)).hexdigest())


def require_stages(directory: Path, num_stages: int) -> None:
    """Refuse a partition for another number of stages; any can be served as one stage, where all of it is here."""
    if not is_partition(directory) or num_stages == 1:
        return
    have = len(read_manifest(directory).stages)
    if have != num_stages:
        other = directory.with_name(f"{directory.name}-{num_stages}-stages")
        raise PartitionError(
            f"{directory} is partitioned for {have} stages; expected {num_stages}, as many as the mesh has; run "
            f"`cloudcomplete partition {directory} --stages {num_stages} --out {other}`, or choose --stages {have}"
        )


class Partition(contextlib.AbstractContextManager["Partition"]):
    """An open partitioned checkpoint: `Parameters` whose every byte is checked before it is returned.

    Holds the file read last, since devices ask for its parts one after the other.
    """

    def __init__(self, directory: Path, config: ModelConfig, *, stages: Collection[int] | None = None) -> None:
        """Open what `stages` have (None: all); raises PartitionError if any of it is missing or cut short."""
        self._directory, self.config = directory, config
        self._manifest = read_manifest(directory)
        chosen = range(len(self._manifest.stages)) if stages is None else stages
        for stage in chosen:
            check_present(directory, self._manifest, stage)
        for name, entry in self._manifest.files.items():
            check_file(directory / name, entry)
        self._shapes = parameter_shapes(config)
        self._places: dict[str, list[tuple[str, FileEntry, int]]] = {}
        for number in chosen:
            for name, (file, entry) in self._manifest.stages[number].parameters.items():
                self._places.setdefault(name, []).append((file, entry, self._manifest.stages[number].first_token))
        self._last: tuple[str, np.ndarray] | None = None

    def __exit__(self, *_: object) -> None:
        self._last = None

    def dtype_of(self, path: ParameterPath) -> np.dtype[Any]:
        """Return the type in which a parameter is kept."""
        return np.dtype(self._places_of(path)[0][1].dtype)

    def read(self, path: ParameterPath, index: Index, *, dtype: np.dtype[Any]) -> np.ndarray:
        """Return part of a parameter; raises PartitionError for one that is not here or was changed."""
        places = self._places_of(path)
        shape = self._shapes[path]
        bounds = tuple(slice(*axis.indices(size)[:2]) for axis, size in zip(index, shape, strict=True))
        axis = vocabulary_axis(path)
        if axis is None:
            file, entry, _ = places[0]
            return self._array(file, entry)[bounds].astype(dtype)
        result = np.empty([part.stop - part.start for part in bounds], dtype)
        wanted, filled = bounds[axis], 0
        for file, entry, first in places:
            start, stop = max(wanted.start, first), min(wanted.stop, first + entry.shape[axis])
            if start < stop:
                source, target = list(bounds), list(whole(result.shape))
                source[axis] = slice(start - first, stop - first)
                target[axis] = slice(start - wanted.start, stop - wanted.start)
                result[tuple(target)] = self._array(file, entry)[tuple(source)]
                filled += stop - start
        if filled < wanted.stop - wanted.start:
            raise PartitionError(
                f"tokens {wanted.start:,} to {wanted.stop:,} of {name_of(path)} are in several stages of "
                f"{self._directory}, of which only some were opened; open the others too"
            )
        return result

    def _places_of(self, path: ParameterPath) -> list[tuple[str, FileEntry, int]]:
        if (name := name_of(path)) not in self._places:
            raise PartitionError(
                f"{name} is in no stage of {self._directory} that was opened; expected it by config.json; "
                "open its stage too, or partition the model again"
            )
        return self._places[name]

    def _array(self, file: str, entry: FileEntry) -> np.ndarray:
        if self._last is None or self._last[0] != file:
            self._last = None  # before the next is made: two at once would be twice the memory
            self._last = (file, read_array(self._directory / file, entry))
        return self._last[1]


def read_stage(directory: Path, stage: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the checked array of each parameter of a stage, the next ones being read meanwhile."""
    manifest = read_manifest(directory)
    check_present(directory, manifest, stage)
    running: deque[tuple[str, FileEntry, Callable[[], np.ndarray]]] = deque()
    with _readers() as pool:
        for name, (file, entry) in manifest.stages[stage].parameters.items():
            running.append((name, entry, _start_reading(pool, directory / file, entry)))
            if len(running) > _FILES_AHEAD:
                yield _take_first(running)
        while running:
            yield _take_first(running)


def check_present(directory: Path, manifest: Manifest, stage: int) -> None:
    """Refuse a stage of which a file is missing or has another size; reads none of them."""
    if not 0 <= stage < len(manifest.stages):
        raise PartitionError(
            f"{directory} has {len(manifest.stages)} stages; expected a stage below that, got {stage}; "
            "partition the model for as many stages as the mesh has"
        )
    if not (directory / f"stage-{stage}").is_dir():
        raise PartitionError(
            f"stage {stage} of {len(manifest.stages)} is missing in {directory}: expected stage-{stage}/ there; "
            f"copy it from where the model was partitioned, or partition the model again"
        )
    for file, entry in manifest.stages[stage].parameters.values():
        _check_size(directory / file, entry)


def check_file(path: Path, entry: FileEntry) -> None:
    """Refuse a file that is not what the manifest says, byte for byte."""
    _read_whole(path, entry)


def read_array(path: Path, entry: FileEntry) -> np.ndarray:
    """Return an array, checked; raises PartitionError."""
    return _as_array(_read_whole(path, entry), entry)


def describe_bytes(data: np.ndarray | bytes) -> FileEntry:
    """Return what the manifest says of a file with these bytes; the checksums are computed on all cores."""
    array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
    view = array.reshape(-1).view(np.uint8).data
    blocks = [view[start : start + BLOCK_BYTES] for start in range(0, len(view), BLOCK_BYTES)]
    with ThreadPoolExecutor(_num_cores()) as pool:
        digests = tuple(pool.map(lambda block: hashlib.sha256(block).hexdigest(), blocks))
    if isinstance(data, bytes):
        return FileEntry(num_bytes=len(view), blocks=digests)
    return FileEntry(num_bytes=len(view), blocks=digests, shape=data.shape, dtype=data.dtype.name)


def name_of(path: ParameterPath) -> str:
    """Return a parameter's name in files."""
    return ".".join(map(str, path))


def vocabulary_axis(path: ParameterPath) -> int | None:
    """Return which axis of a parameter is the vocabulary's and so is divided over the stages, or None."""
    return 0 if path == ("embedding",) else 1 if path == ("head", "kernel") else None


def _take_first(running: deque[tuple[str, FileEntry, Callable[[], np.ndarray]]]) -> tuple[str, np.ndarray]:
    name, entry, finish = running.popleft()
    return name, _as_array(finish(), entry)


def _as_array(data: np.ndarray, entry: FileEntry) -> np.ndarray:
    return data.view(np.dtype(entry.dtype)).reshape(entry.shape)


def _read_whole(path: Path, entry: FileEntry) -> np.ndarray:
    with _readers() as pool:
        return _start_reading(pool, path, entry)()


def _start_reading(pool: Executor, path: Path, entry: FileEntry) -> Callable[[], np.ndarray]:
    """Have a file read and checked block by block; what is returned waits for its bytes, and raises PartitionError."""
    _check_size(path, entry)
    data = np.empty(entry.num_bytes, np.uint8)
    starts = range(0, entry.num_bytes, BLOCK_BYTES)
    digests = [pool.submit(_read_block, path, start, data.data[start : start + BLOCK_BYTES]) for start in starts]

    def finish() -> np.ndarray:
        for number, (digest, expected) in enumerate(zip(digests, entry.blocks, strict=True)):
            if digest.result() != expected:
                raise PartitionError(
                    f"{path} was changed or is damaged: block {number} of {len(digests)} has another checksum than "
                    f"{MANIFEST} says; copy the file again, or partition the model again"
                )
        return data

    return finish


def _read_block(path: Path, start: int, block: memoryview) -> str:
    """Fill a block from a file and return its SHA-256.

    Opens the file for itself: the system reads ahead for each opened file, and several readers of one confuse it.
    """
    at = 0
    with path.open("rb", buffering=0) as file:
        while at < len(block) and (got := os.preadv(file.fileno(), [block[at:]], start + at)):
            at += got
    return hashlib.sha256(block).hexdigest()


def _check_size(path: Path, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise PartitionError(
            f"{path} cannot be read ({error.strerror}); expected {entry.num_bytes:,} bytes there; "
            "copy it again, or partition the model again"
        ) from None
    if size != entry.num_bytes:
        raise PartitionError(
            f"{path} has {size:,} bytes; expected {entry.num_bytes:,} by {MANIFEST}; "
            "copy the file again, or partition the model again"
        )


def _readers() -> ThreadPoolExecutor:
    """As many as cores: more were slower, since each reads ahead from another place of the disk."""
    return ThreadPoolExecutor(_num_cores(), thread_name_prefix="read-partition")


def _num_cores() -> int:
    return min(8, len(os.sched_getaffinity(0)))
