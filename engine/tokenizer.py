"""Text to tokens and tokens to bytes, over a model directory's `tokenizer.json`.

Knows nothing of prompts (`fim.py`) or of streaming (`detokenizer.py`). Two promises that plain tokenizers do not make:

- **User text is never a marker.** Code that happens to contain `<|fim_middle|>` is encoded as the characters it
  consists of; markers enter a prompt by id only.
- **Bytes are exact.** The concatenated `token_bytes` of an encoded text are the text's UTF-8 bytes (up to a Unicode
  normalisation that the tokenizer itself asks for). No space is put in front, none is swallowed.

Byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek-Coder, the starter model) and SentencePiece-style BPE with `▁` and
`<0xAB>` pieces (Llama 2, CodeLlama, Mistral, CodeGemma) are understood. Immutable after loading; any thread may use it.
"""

import copy
import functools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers

from engine.errors import TokenizerError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTROL_SHAPE = re.compile(r"<[|｜].*[|｜]>|<fim[_-]\w+>|▁<\w+>")
_PROBE = "def f(x):\n\treturn  x  # é 世 🙂\n"
_ENCODE_CACHE = 128
_TOKENS_FOR_BYTES_CACHE = 64


class Tokenizer:
    """A vocabulary whose every token is known as bytes."""

    def __init__(self, spec: dict[str, Any], *, eos_ids: tuple[int, ...] = (), vocab_size: int | None = None) -> None:
        """Build from a parsed `tokenizer.json`; `vocab_size` is the number of rows of the model's embedding."""
        self._backend = _backend_of(spec)
        self.eos_ids = eos_ids
        """Tokens that end a text, as the model directory says, ascending."""
        # While someone types, all of a prompt but the current line is the same text again and again.
        self._encode = functools.lru_cache(maxsize=_ENCODE_CACHE)(
            lambda text: tuple(self._backend.encode(text, add_special_tokens=False).ids)
        )
        self._bytes, plain_ids = _vocabulary_bytes(self._backend, spec)
        self.num_tokens = len(self._bytes)
        """One more than the largest id. The model may have more rows (padding); those are never to be produced."""
        if vocab_size is not None and self.num_tokens > vocab_size:
            self._forget_markers_beyond(vocab_size, plain_ids)
        by_bytes = sorted((self._bytes[token_id], token_id) for token_id in plain_ids if self._bytes[token_id])
        self._sorted_bytes = [token for token, _ in by_bytes]
        self._sorted_ids = np.array([token_id for _, token_id in by_bytes], np.int32)
        self.tokens_for_bytes = functools.lru_cache(maxsize=_TOKENS_FOR_BYTES_CACHE)(self._tokens_for_bytes)
        probe_bytes = b"".join(map(self.token_bytes, self.encode(_PROBE)))
        if probe_bytes != _PROBE.encode():
            raise TokenizerError(
                "tokenizer.json loses text: expected the tokens of a probe text to stand for exactly "
                f"{_PROBE.encode()!r}, got {probe_bytes!r}; choose a model with a byte-level or byte-fallback tokenizer"
            )

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Read `tokenizer.json`, and the ids that end a text from `config.json` and `generation_config.json`."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"no tokenizer.json in {directory}; expected the file of a Hugging Face fast tokenizer; "
                "check the path, or convert the tokenizer (transformers' save_pretrained writes it)"
            )
        spec = _read_json_object(path)
        config, generation = (
            _read_json_object(directory / name) if (directory / name).is_file() else {}
            for name in ("config.json", "generation_config.json")
        )
        vocab_size = config.get("vocab_size")
        return cls(
            spec,
            eos_ids=tuple(sorted({*_eos_ids(config), *_eos_ids(generation)})),
            vocab_size=vocab_size if isinstance(vocab_size, int) else None,
        )

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`, adding none and taking none of its characters for a marker.

        `text` must be encodable as UTF-8; `fim.py` refuses requests that are not.
        """
        return list(self._encode(text))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes a token stands for; empty for markers and for ids the vocabulary lacks."""
        return self._bytes[token_id] if 0 <= token_id < self.num_tokens else b""

    def marker_id(self, text: str) -> int | None:
        """Return the id of the one token that is `text`, or None when the vocabulary has no such token."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id if token_id is not None and token_id < self.num_tokens else None

    def _tokens_for_bytes(self, prefix: bytes) -> np.ndarray:
        """Return the ids (int32) that may come next while the bytes `prefix` still have to be written.

        These are the tokens that begin with `prefix` and those that are a non-empty beginning of it. Markers never are.
        Read-only and kept for the next call with the same bytes.
        """
        start = bisect_left(self._sorted_bytes, prefix)
        successor = _successor(prefix)
        end = len(self._sorted_bytes) if successor is None else bisect_left(self._sorted_bytes, successor)
        found = [self._sorted_ids[start:end]]
        for length in range(1, len(prefix)):
            beginning = prefix[:length]
            first, last = bisect_left(self._sorted_bytes, beginning), bisect_right(self._sorted_bytes, beginning)
            found.append(self._sorted_ids[first:last])
        ids = np.concatenate(found)
        ids.flags.writeable = False
        return ids

    def _forget_markers_beyond(self, vocab_size: int, plain_ids: list[int]) -> None:
        """Drop markers that the model has no embedding for; some checkpoints ship such tokenizers."""
        if any(token_id >= vocab_size for token_id in plain_ids):
            raise TokenizerError(
                f"tokenizer.json has {self.num_tokens} tokens; expected at most config.json's vocab_size {vocab_size}; "
                "the tokenizer belongs to another model"
            )
        self.num_tokens = vocab_size
        del self._bytes[vocab_size:]


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not JSON ({error}); expected a JSON object; download or copy it again"
        ) from None
    if not isinstance(value, dict):
        raise TokenizerError(
            f"{path} holds a {type(value).__name__}; expected a JSON object; download or copy it again"
        )
    return value


def _eos_ids(config: dict[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    return tuple(token_id for token_id in (value if isinstance(value, list) else [value]) if isinstance(token_id, int))


def _components(spec: dict[str, Any], part: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part of `tokenizer.json`, whether it is one step or a sequence of them."""
    pending = [spec.get(part)]
    while pending:
        step = pending.pop()
        if isinstance(step, dict):
            yield step
            for nested in ("normalizers", "pretokenizers", "decoders"):
                pending.extend(step.get(nested) or [])


def _is_byte_level(spec: dict[str, Any]) -> bool:
    """Tell byte-level from SentencePiece-style vocabularies; raises TokenizerError for anything else."""
    steps = [step for part in ("normalizer", "pre_tokenizer", "decoder") for step in _components(spec, part)]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "ByteFallback"}:
        return False
    raise TokenizerError(
        f"tokenizer.json is built of {', '.join(sorted(map(str, kinds))) or 'no known steps'}; expected ByteLevel, "
        "Metaspace or ByteFallback among them; choose a model with a byte-level or SentencePiece-style tokenizer"
    )


def _is_blank(content: str) -> bool:
    return not content.replace("▁", " ").strip()


def _backend_of(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    """Return the tokenizer with everything switched off that adds, swallows or reinterprets characters."""
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(_plain_spec(spec)))
    except Exception as error:  # The library raises plain Exception, whatever is wrong with a file.
        raise TokenizerError(
            f"tokenizer.json is malformed ({error}); expected the format of tokenizers {tokenizers.__version__}; "
            "download or copy it again"
        ) from None
    backend.encode_special_tokens = True
    return backend


def _plain_spec(spec: dict[str, Any]) -> dict[str, Any]:
    spec = {**spec, "post_processor": None, "truncation": None, "padding": None}
    # Whitespace runs listed as added tokens (GPT-NeoX, Gemma) are ordinary text; any other added token is a marker,
    # also those that are not flagged special (Qwen's FIM markers): flagged, `encode_special_tokens` keeps them out.
    spec["added_tokens"] = [
        token if _is_blank(token["content"]) else {**token, "special": True} for token in spec.get("added_tokens") or []
    ]
    if normalizer := spec.get("normalizer"):
        steps = normalizer.get("normalizers", [normalizer])
        kept = [step for step in steps if step.get("type") != "Prepend"]
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    spec["pre_tokenizer"] = copy.deepcopy(spec.get("pre_tokenizer"))
    for step in _components(spec, "pre_tokenizer"):
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
        if step.get("type") == "Metaspace":
            step.pop("add_prefix_space", None)
            step["prepend_scheme"] = "never"
    return spec


def _byte_level_alphabet() -> dict[str, int]:
    """Return GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _vocabulary_bytes(backend: tokenizers.Tokenizer, spec: dict[str, Any]) -> tuple[list[bytes], list[int]]:
    """Return the bytes of every id, and the ids that ordinary text consists of."""
    is_byte_level = _is_byte_level(spec)
    alphabet = _byte_level_alphabet()

    def text_bytes(content: str) -> bytes:
        return content.encode() if is_byte_level else content.replace("▁", " ").encode()

    def piece_bytes(piece: str) -> bytes:
        if is_byte_level:
            # A character outside the alphabet can only stand for itself.
            return b"".join(bytes((alphabet[c],)) if c in alphabet else c.encode() for c in piece)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else text_bytes(piece)

    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    unknown = spec.get("model", {}).get("unk_token")
    merged = None if is_byte_level else _merged_pieces(spec)

    def is_control(piece: str) -> bool:
        # SentencePiece keeps control symbols among its pieces, and not every conversion lists them as added tokens.
        return merged is not None and len(piece) > 1 and piece not in merged and not _BYTE_PIECE.fullmatch(piece)

    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    plain_ids = []
    for piece, token_id in vocabulary.items():
        token = added.get(token_id)
        if token is None:
            if piece != unknown and not is_control(piece):
                table[token_id] = piece_bytes(piece)
                plain_ids.append(token_id)
        elif _is_blank(token["content"]):
            table[token_id] = text_bytes(token["content"])
            plain_ids.append(token_id)
        elif not token.get("special") and not _CONTROL_SHAPE.fullmatch(token["content"]):
            table[token_id] = text_bytes(token["content"])  # Never asked for, but text when the model writes it.
    return table, plain_ids


def _merged_pieces(spec: dict[str, Any]) -> set[str] | None:
    """Return the pieces that text can be merged into, or None for a vocabulary that does not only merge."""
    merges = spec["model"].get("merges")
    if merges is None or spec["model"].get("ignore_merges"):
        return None
    return {"".join(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges}


def _successor(prefix: bytes) -> bytes | None:
    """Return the smallest bytes greater than everything that begins with `prefix`, or None when there are none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None
