"""What a model directory holds, as a short name: two directories with the same name give the same answers.

Reading all weights of a large model takes longer than loading them, so of each file the header, the size and evenly
spaced samples are hashed: training changes bytes everywhere. A partitioned checkpoint has the name of the model it was
made from, since it gives the same answers. Knows no format but where files lie.
"""

from hashlib import blake2b
from pathlib import Path

from engine.weights.partition import is_partition, read_manifest

_SAMPLES = 32
_SAMPLE_BYTES = 1 << 16
_WHOLE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def fingerprint(directory: Path) -> str:
    """Return 32 hexadecimal digits; raises OSError for files that cannot be read, or PartitionError."""
    if is_partition(directory):
        return read_manifest(directory).fingerprint
    digest = blake2b(digest_size=16)
    for name in _WHOLE:
        path = directory / name
        _add(digest, name.encode(), path.read_bytes() if path.is_file() else b"")
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        _add(digest, path.name.encode(), str(size).encode())
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(i * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                _add(digest, file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _add(digest: "blake2b", *parts: bytes) -> None:
    """Hash parts so that moving a border between two of them gives another digest."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
