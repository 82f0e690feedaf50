import io
import tarfile

import msgspec
import pytest

from engine.training.corpus import load_documents
from engine.training.errors import CorpusError
from engine.training.sprint import pack, unpack, write_parts
from engine.training.vocabulary import save_vocabulary


@pytest.fixture
def packed(documents, tokenizer, tmp_path):
    work = tmp_path / "work"
    save_vocabulary(tokenizer, work / "tokenizer.json")
    (work / "documents.msgpack").write_bytes(msgspec.msgpack.encode(documents))
    size = pack(work, tmp_path / "packed")
    assert size == sum(path.stat().st_size for path in (tmp_path / "packed").iterdir())
    return tmp_path / "packed"


def test_a_packed_corpus_unpacks_to_the_same_documents_and_vocabulary(packed, documents, tmp_path) -> None:
    unpack(packed, tmp_path / "there")
    assert load_documents(tmp_path / "there") == documents
    assert (tmp_path / "there" / "tokenizer.json").read_bytes() == (packed / "tokenizer.json").read_bytes()


def test_a_damaged_or_incomplete_pack_is_named(packed, tmp_path) -> None:
    content = (packed / "documents.msgpack.xz").read_bytes()
    (packed / "documents.msgpack.xz").write_bytes(content[:20] + b"?" + content[21:])
    with pytest.raises(CorpusError, match=r"documents\.msgpack\.xz is damaged \(.*\); pack the corpus again"):
        unpack(packed, tmp_path / "there")
    (packed / "tokenizer.json").unlink()
    with pytest.raises(CorpusError, match=r"lacks tokenizer\.json; expected a packed corpus; run"):
        unpack(packed, tmp_path / "there")


def test_parts_are_small_and_join_to_the_model(tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (model / "config.json").write_text("{}")
    parts = write_parts(model, tmp_path / "out", 10_000)
    assert len(parts) > 2
    assert all(part.stat().st_size <= 10_000 for part in parts)
    joined = b"".join(part.read_bytes() for part in sorted((tmp_path / "out").iterdir()))
    with tarfile.open(fileobj=io.BytesIO(joined)) as archive:
        assert sorted(archive.getnames()) == ["model/config.json", "model/model.safetensors"]
        assert archive.extractfile("model/model.safetensors").read() == bytes(range(256)) * 100
