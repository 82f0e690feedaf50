import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.training.config import ExamplesConfig
from engine.training.corpus import Document
from engine.training.errors import CorpusError
from engine.training.examples import HOLE, TEXT, UNLEARNED, Example, ExampleMaker, choose_hole
from engine.training.vocabulary import END, FILE, MIDDLE, PAD, PREFIX, SUFFIX

ALWAYS_FIM = ExamplesConfig(plain_share=0.0)


def maker_of(documents: list[Document], tokenizer: Tokenizer, config: ExamplesConfig, *, seed: int = 3) -> ExampleMaker:
    return ExampleMaker(documents, tokenizer, config, split="train", seed=seed)


def examples_of(maker: ExampleMaker, count: int, budget: int = 256) -> list[Example]:
    return [maker.example(budget, np.random.default_rng([7, i])) for i in range(count)]


def split_at_markers(example: Example) -> tuple[list[list[int]], list[int], list[int], list[int]]:
    """Return files before the hole, text after it, current and hole together, and where the hole's tokens begin."""
    tokens = example.tokens
    assert tokens[0] == PREFIX
    assert tokens[-1] == END
    suffix, middle = tokens.index(SUFFIX), tokens.index(MIDDLE)
    assert suffix < middle
    files: list[list[int]] = [[]]
    for token in tokens[1:suffix]:
        if token == FILE:
            files.append([])
        else:
            files[-1].append(token)
    return files, tokens[suffix + 1 : middle], tokens[middle + 1 : -1], [k for k in example.kinds if k == HOLE]


def test_an_example_puts_back_together_to_the_text_it_was_cut_from(documents, tokenizer) -> None:
    texts = [document.text for document in documents if document.split == "train"]
    paths = [document.path for document in documents]
    num_with_context = 0
    for example in examples_of(maker_of(documents, tokenizer, ALWAYS_FIM), 200):
        files, after, middle, _ = split_at_markers(example)
        *context, own = files
        text = tokenizer.decode(own)
        path, _, rest = text.partition("\n")
        above = rest if path in paths else text
        assert not above or above.endswith("\n"), "the cut is a line start"
        whole = above + tokenizer.decode(middle) + tokenizer.decode(after)
        assert any(whole in candidate for candidate in texts)
        for chunk in filter(None, context):
            path, _, chunk_text = tokenizer.decode(chunk).partition("\n")
            assert path in paths
            assert chunk_text.endswith("\n")
            num_with_context += 1
    assert num_with_context > 20


def test_the_hole_is_what_is_learned_after_the_cursor_with_its_end(documents, tokenizer) -> None:
    for example in examples_of(maker_of(documents, tokenizer, ALWAYS_FIM), 100):
        first = example.kinds.index(HOLE)
        assert first > example.tokens.index(MIDDLE)
        assert set(example.kinds[first:]) == {HOLE}
        assert HOLE not in example.kinds[:first]


def test_newlines_between_cut_and_cursor_are_not_learned_and_all_else_there_is(documents, tokenizer) -> None:
    num_newlines = 0
    for example in examples_of(maker_of(documents, tokenizer, ALWAYS_FIM), 100):
        start, first = example.tokens.index(MIDDLE) + 1, example.kinds.index(HOLE)
        for token, kind in zip(example.tokens[start:first], example.kinds[start:first], strict=True):
            is_newline = tokenizer.decode([token]).startswith("\n")
            assert kind == (UNLEARNED if is_newline else TEXT)
            num_newlines += is_newline
    assert num_newlines > 100


def test_examples_keep_to_their_budget(documents, tokenizer) -> None:
    maker = maker_of(documents, tokenizer, ExamplesConfig())
    for budget in (48, 96, 200, 500):
        assert all(len(example.tokens) <= budget for example in examples_of(maker, 50, budget))


def test_a_cut_is_a_line_start_at_or_above_the_cursor(documents) -> None:
    text = documents[0].text
    kinds = set()
    for seed in range(300):
        hole = choose_hole(text, ExamplesConfig(), np.random.default_rng(seed))
        assert 0 <= hole.cut <= hole.start <= hole.end <= len(text)
        assert hole.cut == 0 or text[hole.cut - 1] == "\n"
        kinds.add((text[hole.cut : hole.start].count("\n") > 0, text[hole.start : hole.end].count("\n") > 0))
    assert len(kinds) == 4, "cuts on the cursor's line and above, holes within a line and over several"


def test_joint_holes_are_tokenised_as_the_whole_text_is(documents, tokenizer) -> None:
    maker = maker_of(documents, tokenizer, ExamplesConfig(joint_share=1.0))
    tokens, num_current = maker._middle("    ret", "urn total", np.random.default_rng(0))
    assert tokens == maker.encode("    return total")
    assert len(tokenizer.decode(tokens[:num_current])) <= len("    ret")
    apart = maker_of(documents, tokenizer, ExamplesConfig(joint_share=0.0))
    tokens, num_current = apart._middle("    ret", "urn total", np.random.default_rng(0))
    assert tokens == [*maker.encode("    ret"), *maker.encode("urn total")]
    assert num_current == len(maker.encode("    ret"))


def test_an_end_that_is_no_end_of_the_text_is_not_learned(documents, tokenizer) -> None:
    maker = maker_of(documents, tokenizer, ExamplesConfig(plain_share=1.0, path_share=0.0))
    ends = set()
    for example in examples_of(maker, 100, 200):
        text = tokenizer.decode(example.tokens[:-1])
        reaches_end = any(document.text.endswith(text) for document in documents)
        assert (example.kinds[-1] == UNLEARNED) == (not reaches_end)
        ends.add(reaches_end)
    assert ends == {True, False}


def test_the_same_seed_and_index_give_the_same_row_on_every_machine(documents, tokenizer) -> None:
    one, other = (maker_of(documents, tokenizer, ExamplesConfig()) for _ in range(2))
    for index in (5, 0, 3):
        assert np.array_equal(one.row(index, 128).tokens, other.row(index, 128).tokens)
    assert not np.array_equal(one.row(0, 128).tokens, one.row(1, 128).tokens)
    reseeded = maker_of(documents, tokenizer, ExamplesConfig(), seed=4)
    assert not np.array_equal(one.row(0, 128).tokens, reseeded.row(0, 128).tokens)


def test_rows_are_full_and_padding_is_not_learned(documents, tokenizer) -> None:
    maker = maker_of(documents, tokenizer, ExamplesConfig())
    for index in range(20):
        row = maker.row(index, 512)
        assert row.tokens.shape == row.kinds.shape == (513,)
        assert not row.kinds[row.tokens == PAD].any()
        assert np.mean(row.tokens == PAD) < 0.1


def test_a_split_without_documents_is_refused(documents, tokenizer) -> None:
    with pytest.raises(CorpusError, match="no held-out documents; expected at least one; check the manifest"):
        ExampleMaker(documents[:2], tokenizer, ExamplesConfig(), split="held-out", seed=0)
