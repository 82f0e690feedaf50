"""What a rented machine needs that starts bare, runs one command of limited time and keeps nothing: corpus and
vocabulary packed to travel in, the trained model in parts small enough to travel back.

Text travels rather than tokens: compressed it is as small, and every epoch cuts other holes into it.
"""

import io
import lzma
import shutil
import tarfile
from pathlib import Path

from engine.training.corpus import load_documents, write_aside
from engine.training.errors import CorpusError

PACKED_NAMES = ("documents.msgpack.xz", "tokenizer.json")


def pack(work: Path, out: Path) -> int:
    """Write the work folder's corpus, compressed, and its vocabulary to `out`; return their bytes together."""
    load_documents(work)
    write_aside(out / "documents.msgpack.xz", lzma.compress((work / "documents.msgpack").read_bytes()))
    write_aside(out / "tokenizer.json", (work / "tokenizer.json").read_bytes())
    return sum((out / name).stat().st_size for name in PACKED_NAMES)


def unpack(packed: Path, work: Path) -> None:
    """Make a work folder of what `pack` wrote; raises CorpusError."""
    missing = [name for name in PACKED_NAMES if not (packed / name).exists()]
    if missing:
        raise CorpusError(
            f"{packed} lacks {', '.join(missing)}; expected a packed corpus; run `python -m engine.training pack`"
        )
    try:
        content = lzma.decompress((packed / "documents.msgpack.xz").read_bytes())
    except lzma.LZMAError as error:
        raise CorpusError(f"{packed / 'documents.msgpack.xz'} is damaged ({error}); pack the corpus again") from error
    write_aside(work / "documents.msgpack", content)
    shutil.copyfile(packed / "tokenizer.json", work / "tokenizer.json")


def write_parts(model: Path, out: Path, part_bytes: int) -> list[Path]:
    """Write a model directory as one tar in parts, `model.tar.000` and so on; joined by `cat model.tar.* | tar x`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(model.iterdir()):
            archive.add(path, arcname=f"{model.name}/{path.name}")
    content = buffer.getvalue()
    paths = []
    for number, start in enumerate(range(0, len(content), part_bytes)):
        paths.append(out / f"model.tar.{number:03d}")
        write_aside(paths[-1], content[start : start + part_bytes])
    return paths
