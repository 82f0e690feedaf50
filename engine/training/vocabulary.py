"""The starter model's vocabulary: byte-level BPE with GPT-2's pre-tokenizer and FIM markers as single tokens.

The pre-tokenizer is exactly GPT-2's, so that other runtimes recognise the tokenizer without being told.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|file_sep|>",
    "<|repo_name|>",
    "<|fim_pad|>",
)
"""Their ids are their places: 0 ends a text, 1 to 3 mark the hole, 4 opens a file, 5 and 6 are reserved."""

END, PREFIX, SUFFIX, MIDDLE, FILE, _, PAD = range(7)


def learn_vocabulary(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn a byte-level BPE of `size` tokens; the special tokens come first, then all 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    return tokenizer


def save_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """Write `tokenizer.json` aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    tokenizer.save(str(partial))
    partial.rename(path)
