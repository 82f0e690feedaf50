from tokenizers import Tokenizer

from engine.training.vocabulary import SPECIAL_TOKENS, save_vocabulary


def test_special_tokens_come_first_and_are_single(tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert tokenizer.encode("a<|fim_middle|>b").ids[1] == 3


def test_any_text_survives_a_round_trip(tokenizer, tmp_path) -> None:
    save_vocabulary(tokenizer, tmp_path / "tokenizer.json")
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("def f():\n\treturn  1\n", "größe = '日本語 🙂'\r\n", "\x00\x7f"):
        assert loaded.decode(loaded.encode(text).ids) == text


def test_the_pre_tokenizer_is_gpt_2s(tokenizer) -> None:
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("we'll see  x1")]
    assert pieces == ["we", "'ll", "Ġsee", "Ġ", "Ġx", "1"]
