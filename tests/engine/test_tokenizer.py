"""Exact bytes in both kinds of vocabularies, and user text that never turns into markers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ModelError, TokenizerError
from engine.tokenizer import Tokenizer

TINY_LLAMA = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-llama"
BYTE_LEVEL_SPEC: dict[str, Any] = json.loads((TINY_LLAMA / "tokenizer.json").read_text())


def added(token_id: int, content: str, *, special: bool = False, normalized: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
    return {"id": token_id, "content": content, **flags}


def with_added(spec: dict[str, Any], *tokens: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "added_tokens": [*spec["added_tokens"], *tokens]}


def byte_fallback_spec() -> dict[str, Any]:
    """Return a small vocabulary in the form that Llama 2 and CodeLlama use."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefgh()\n", "ab", "▁a", "▁▁"]
    return {
        "version": "1.0",
        "added_tokens": [added(i, pieces[i], special=True) for i in range(3)] + [added(len(pieces), "▁<MID>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": ["a b", "▁ a", "▁ ▁"],
        },
    }


def metaspace_spec() -> dict[str, Any]:
    """Return the same vocabulary in the form of newer conversions, which mark spaces before they split."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return {**byte_fallback_spec(), "normalizer": None, "pre_tokenizer": metaspace}


def mistral_spec() -> dict[str, Any]:
    """Return a vocabulary with control symbols as Mistral's have them, as ordinary pieces."""
    spec = byte_fallback_spec()
    pieces = dict.fromkeys([*spec["model"]["vocab"], *"[]PREFIX", "[INST]", "[PREFIX]", "[SUFFIX]", "[MIDDLE]"])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return {**spec, "added_tokens": spec["added_tokens"][:3], "model": {**spec["model"], "vocab": vocabulary}}


def gemma_spec() -> dict[str, Any]:
    """Return a vocabulary in Gemma's form: nothing in front, runs of newlines and spaces as added tokens."""
    spec = byte_fallback_spec()
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    spec["pre_tokenizer"]["invert"] = False
    spec["decoder"]["decoders"].pop()
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {"\n\n": len(vocabulary), "<|fim_prefix|>": len(vocabulary) + 1}
    runs = [added(vocabulary[run], run) for run in ("\n\n", "▁▁")]
    markers = [added(vocabulary["<|fim_prefix|>"], "<|fim_prefix|>", special=True)]
    return {**spec, "added_tokens": [*spec["added_tokens"][:3], *runs, *markers]}


BYTE_LEVEL = Tokenizer(BYTE_LEVEL_SPEC)
BYTE_FALLBACK = Tokenizer(byte_fallback_spec())
METASPACE, MISTRAL, GEMMA = (Tokenizer(spec()) for spec in (metaspace_spec, mistral_spec, gemma_spec))
SENTENCEPIECE = {"byte_fallback": BYTE_FALLBACK, "metaspace": METASPACE, "mistral": MISTRAL, "gemma": GEMMA}
ALL = {"byte_level": BYTE_LEVEL, **SENTENCEPIECE}
EACH_KIND = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)

MARKER_TEXTS = ["<|fim_middle|>", "<|fim_prefix|>", "<|endoftext|>", "▁<MID>", "<s>", "<0x41>", "<|plain|>", "[PREFIX]"]
source_texts = st.lists(st.text() | st.sampled_from([*MARKER_TEXTS, " ", "    ", "\n", "ab", "def "])).map("".join)


def joined_bytes(tokenizer: Tokenizer, text: str) -> bytes:
    return b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))


@EACH_KIND
@given(text=source_texts)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    # A literal U+2581 is how SentencePiece writes a space: the one character that such a vocabulary can't tell apart.
    text = text if tokenizer is BYTE_LEVEL else text.replace("▁", "_")
    assert joined_bytes(tokenizer, text) == text.encode()


def test_the_bytes_of_each_token_are_what_the_library_decodes() -> None:
    library = tokenizers.Tokenizer.from_file(str(TINY_LLAMA / "tokenizer.json"))
    for token_id in range(BYTE_LEVEL.num_tokens):
        assert BYTE_LEVEL.token_bytes(token_id).decode(errors="replace") == library.decode([token_id])
    assert {bytes((byte,)) for byte in range(256)} <= set(map(BYTE_LEVEL.token_bytes, range(BYTE_LEVEL.num_tokens)))


def test_byte_pieces_and_spaces_of_sentencepiece_are_known_as_bytes() -> None:
    bytes_of = {piece: BYTE_FALLBACK.token_bytes(i) for piece, i in byte_fallback_spec()["model"]["vocab"].items()}
    assert (bytes_of["<0xAB>"], bytes_of["▁a"], bytes_of["▁▁"]) == (b"\xab", b" a", b"  ")
    assert bytes_of["<unk>"] == bytes_of["<s>"] == b""


@pytest.mark.parametrize("tokenizer", SENTENCEPIECE.values(), ids=SENTENCEPIECE)
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", ["ab"]),
        (" ab", ["▁", "ab"]),
        (" a", ["▁a"]),
        ("\n    ab", ["\n", "▁▁", "▁▁", "ab"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("\t", ["<0x09>"]),
    ],
)
def test_a_segment_of_sentencepiece_begins_with_its_own_first_character(
    tokenizer: Tokenizer, text: str, pieces: list[str]
) -> None:
    assert tokenizer.encode(text) == [tokenizer.marker_id(piece) for piece in pieces]


@pytest.mark.parametrize("tokenizer", SENTENCEPIECE.values(), ids=SENTENCEPIECE)
@pytest.mark.parametrize(
    ("heal", "pieces"),
    [
        (b" ", {"<0x20>", "▁", "▁a", "▁▁"}),
        (b" a", {"<0x20>", "▁", "▁a"}),
        (b"\xc3", {"<0xC3>"}),
        (b"ab", {"<0x61>", "a", "ab"}),
    ],
)
def test_healed_bytes_can_be_written_by_pieces_and_by_single_bytes(
    tokenizer: Tokenizer, heal: bytes, pieces: set[str]
) -> None:
    assert set(tokenizer.tokens_for_bytes(heal).tolist()) == {tokenizer.marker_id(piece) for piece in pieces}


def test_control_symbols_that_no_text_is_merged_into_are_markers_even_where_they_are_not_listed() -> None:
    for marker in ("[PREFIX]", "[SUFFIX]", "[MIDDLE]", "[INST]"):
        token_id = MISTRAL.marker_id(marker)
        assert token_id is not None
        assert MISTRAL.token_bytes(token_id) == b""
        assert token_id not in MISTRAL.encode(f"a{marker}b")
        assert token_id not in MISTRAL.tokens_for_bytes(b"[")
    assert MISTRAL.marker_id("[") in MISTRAL.tokens_for_bytes(b"[")


def test_gemmas_runs_of_newlines_are_ordinary_text() -> None:
    run = GEMMA.marker_id("\n\n")
    assert GEMMA.encode("a\n\nb") == [GEMMA.marker_id("a"), run, GEMMA.marker_id("b")]
    assert run in GEMMA.tokens_for_bytes(b"\n")


@EACH_KIND
@pytest.mark.parametrize("marker", MARKER_TEXTS)
def test_markers_in_user_text_are_ordinary_characters(tokenizer: Tokenizer, marker: str) -> None:
    ids = tokenizer.encode(f"a{marker}b")
    assert len(ids) > 3
    assert all(tokenizer.token_bytes(token_id) for token_id in ids)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_are_markers_whether_flagged_special_or_not(*, special: bool, normalized: bool) -> None:
    marker = added(320, "<|plain|>", special=special, normalized=normalized)
    tokenizer = Tokenizer(with_added(BYTE_LEVEL_SPEC, marker))
    assert tokenizer.marker_id("<|plain|>") == 320
    assert tokenizer.num_tokens == 321
    assert tokenizer.token_bytes(320) == b""
    assert 320 not in tokenizer.encode("a<|plain|>b")
    assert 320 not in tokenizer.tokens_for_bytes(b"<")


def test_added_tokens_with_text_of_their_own_show_it_but_are_never_asked_for() -> None:
    tokenizer = Tokenizer(with_added(BYTE_LEVEL_SPEC, added(320, "<table>")))
    assert tokenizer.token_bytes(320) == b"<table>"
    assert 320 not in tokenizer.encode("<table>")
    assert 320 not in tokenizer.tokens_for_bytes(b"<ta")


def test_whitespace_listed_as_added_tokens_stays_ordinary_text() -> None:
    tokenizer = Tokenizer(with_added(BYTE_LEVEL_SPEC, added(320, " " * 12, normalized=True)))
    assert 320 in tokenizer.encode(f"a{' ' * 12}b")
    assert joined_bytes(tokenizer, f"a{' ' * 12}b") == f"a{' ' * 12}b".encode()
    assert 320 in tokenizer.tokens_for_bytes(b"   ")


def test_no_space_is_put_in_front() -> None:
    for change in (
        {"pre_tokenizer": {**BYTE_LEVEL_SPEC["pre_tokenizer"], "add_prefix_space": True}},
        {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    ):
        assert joined_bytes(Tokenizer({**BYTE_LEVEL_SPEC, **change}), "ab") == b"ab"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    spec = {**byte_fallback_spec(), "normalizer": None, "pre_tokenizer": metaspace}
    assert joined_bytes(Tokenizer(spec), "ab a") == b"ab a"


def test_truncation_and_padding_in_the_file_are_switched_off() -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding: dict[str, Any] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    tokenizer = Tokenizer({**BYTE_LEVEL_SPEC, "truncation": truncation, "padding": padding})
    assert tokenizer.encode("hello world") == BYTE_LEVEL.encode("hello world")


def test_a_caller_may_change_the_list_it_got() -> None:
    ids = BYTE_LEVEL.encode("return")
    ids.clear()
    assert BYTE_LEVEL.encode("return") != []


# Which tokens may come next


vocabulary_slices = st.builds(
    lambda token, start: token[start:],
    st.sampled_from([BYTE_LEVEL.token_bytes(token_id) for token_id in range(BYTE_LEVEL.num_tokens)]),
    st.integers(0, 3),
)


@EACH_KIND
@given(prefix=st.lists(vocabulary_slices | st.binary(max_size=3), min_size=1, max_size=3).map(b"".join).filter(len))
def test_tokens_for_bytes_are_those_that_a_search_through_all_finds(tokenizer: Tokenizer, prefix: bytes) -> None:
    expected = {
        token_id
        for token_id in range(tokenizer.num_tokens)
        if (token := tokenizer.token_bytes(token_id)) and (token.startswith(prefix) or prefix.startswith(token))
    }
    found = tokenizer.tokens_for_bytes(prefix)
    assert found.dtype == np.int32
    assert sorted(found.tolist()) == sorted(expected)


def test_tokens_for_the_largest_byte_are_found() -> None:
    assert [BYTE_LEVEL.token_bytes(token_id) for token_id in BYTE_LEVEL.tokens_for_bytes(b"\xff\xff")] == [b"\xff"]


def test_tokens_for_bytes_can_not_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        BYTE_LEVEL.tokens_for_bytes(b"re")[0] = 0


# Model directories


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        shutil.copy(TINY_LLAMA / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def set_json(directory: Path) -> Callable[..., None]:
    def change(name: str, **values: Any) -> None:
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def test_a_complete_directory_is_read() -> None:
    tokenizer = Tokenizer.from_directory(TINY_LLAMA)
    assert tokenizer.num_tokens == 320
    assert tokenizer.eos_ids == (0,)
    assert tokenizer.token_bytes(320) == tokenizer.token_bytes(-1) == b""


def test_end_tokens_of_both_configs_are_merged(directory: Path, set_json: Callable[..., None]) -> None:
    set_json("config.json", eos_token_id=[6, 0])
    set_json("generation_config.json", eos_token_id=5)
    assert Tokenizer.from_directory(directory).eos_ids == (0, 5, 6)
    (directory / "config.json").unlink()
    set_json("generation_config.json", eos_token_id=None)
    assert Tokenizer.from_directory(directory).eos_ids == ()


def test_markers_that_the_model_has_no_embedding_for_are_forgotten(
    directory: Path, set_json: Callable[..., None]
) -> None:
    set_json("config.json", vocab_size=320)
    set_json("tokenizer.json", **with_added(BYTE_LEVEL_SPEC, added(320, "<|late|>")))
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.num_tokens == 320
    assert tokenizer.marker_id("<|late|>") is None


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(directory: Path, set_json: Callable[..., None]) -> None:
    set_json("config.json", vocab_size=300)
    message = (
        r"tokenizer.json has 320 tokens; expected at most config.json's vocab_size 300; .* belongs to another model"
    )
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_directory(directory)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"no tokenizer.json in .*; expected the file of .*; check the path, or convert"
    ):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_file_that_is_not_json_is_refused(name: str, directory: Path) -> None:
    (directory / name).write_text("{")
    with pytest.raises(
        TokenizerError, match=rf"{name} is not JSON \(.*\); expected a JSON object; download or copy it"
    ):
        Tokenizer.from_directory(directory)


def test_a_file_that_is_no_object_is_refused(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("[]")
    with pytest.raises(
        TokenizerError, match=r"tokenizer.json holds a list; expected a JSON object; download or copy it"
    ):
        Tokenizer.from_directory(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"added_tokens": [{"id": 1}]},
        {"added_tokens": 1},
        {"normalizer": "NFC"},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 1}},
        {"decoder": {"type": "Nobody"}},
    ],
)
def test_a_malformed_tokenizer_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json is malformed \(.*\); expected the format of tokenizers"):
        Tokenizer({**BYTE_LEVEL_SPEC, **change})


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    spec = {**BYTE_LEVEL_SPEC, "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece"}}
    spec["decoder"] |= {"prefix": "##", "cleanup": True}
    message = (
        r"is built of BertPreTokenizer, WordPiece; expected ByteLevel, Metaspace or ByteFallback among them; choose"
    )
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(spec)


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    normalizer = {"type": "Replace", "pattern": {"String": "é"}, "content": "e"}
    with pytest.raises(
        TokenizerError, match=r"loses text: expected .* exactly b'def f.*, got b'def f.*; choose a model"
    ):
        Tokenizer({**BYTE_LEVEL_SPEC, "normalizer": normalizer})


def test_every_refusal_is_a_model_error() -> None:
    assert issubclass(TokenizerError, ModelError)
