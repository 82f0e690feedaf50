"""How good the model is on projects it was never trained on: losses, and how often it completes a line exactly.

Greedy decoding writes a text exactly when, given the text so far, each of its tokens is the likeliest: so one forward
pass over the right answer tells, without decoding. A line ends by the end marker or by a newline. The same text in
other tokens counts as wrong, and the first token is not constrained to the bytes before the cursor, as serving would:
the figures are lower bounds.
"""

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from engine.model.config import ModelConfig
from engine.training.config import TrainingConfig
from engine.training.examples import HOLE, Example, ExampleMaker, choose_hole
from engine.training.products import attend_causally_in_blocks
from engine.training.trainer import Tree, make_measurement, merge_params
from engine.training.vocabulary import PAD

_ROWS_PER_PASS = 16
_MIN_HOLE_CHARS = 3


class ExactMatches(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one language."""

    num_lines: int
    num_exact: int
    """Lines of which every token was the likeliest, and then an end marker or a newline."""
    num_ended: int
    """Lines after which, whatever was right before, an end marker or a newline was the likeliest."""
    num_tokens: int
    num_likeliest: int
    """Tokens that were the likeliest, given the right text before them."""


class HeldOutLoss(msgspec.Struct, frozen=True, kw_only=True):
    """Mean losses on held-out rows, nats per token."""

    row_length: int
    num_rows: int
    loss: float
    hole_loss: float


def measure_losses(
    config: TrainingConfig, params: Tree, maker: ExampleMaker, *, num_rows: int, length: int
) -> HeldOutLoss:
    """Return losses over `num_rows` rows of `length` tokens, a row at a time."""
    losses = make_measurement(config, config.shape.resolve())
    rows = [maker.row(index, length) for index in range(num_rows)]
    pairs = np.array([[float(loss) for loss in losses(params, row.tokens[None], row.kinds[None])] for row in rows])
    loss, hole_loss = pairs.mean(axis=0)
    return HeldOutLoss(row_length=length, num_rows=num_rows, loss=float(loss), hole_loss=float(hole_loss))


def line_examples(
    maker: ExampleMaker, language: str, count: int, length: int, rng: np.random.Generator
) -> list[Example]:
    """Return examples of one language whose hole is the rest of a line, from a random column of it."""
    indices = [index for index, document in enumerate(maker.documents) if document.language == language]
    weights = np.array([len(maker.documents[index].text) for index in indices], np.float64)
    only_lines = msgspec.structs.replace(maker.config, line_share=1.0, block_share=0.0)
    examples: list[Example] = []
    for _ in range(20 * count if indices else 0):
        if len(examples) == count:
            break
        index = int(rng.choice(indices, p=weights / weights.sum()))
        text = maker.documents[index].text
        hole = choose_hole(text, only_lines, rng)
        filling = text[hole.start : hole.end]
        if len(filling.strip()) < _MIN_HOLE_CHARS or filling.endswith("\n"):
            continue
        if example := maker.fill_in_the_middle(index, hole, length, rng):
            examples.append(example)
    return examples


def measure_exact_matches(
    config: TrainingConfig, params: Tree, maker: ExampleMaker, *, lines_per_language: int, length: int
) -> dict[str, ExactMatches]:
    """Return figures by language; `maker` should tokenise holes jointly, as healing does."""
    model = config.shape.resolve()
    rng = np.random.default_rng(config.seed)
    likeliest = jax.jit(lambda params, tokens: _likeliest(model, params, tokens))
    ends = maker.line_end_tokens()
    figures = {}
    for language in sorted({document.language for document in maker.documents}):
        examples = line_examples(maker, language, lines_per_language, length, rng)
        lines: list[tuple[int, int, bool]] = []
        for start in range(0, len(examples), _ROWS_PER_PASS):
            some = examples[start : start + _ROWS_PER_PASS]
            tokens = np.full((_ROWS_PER_PASS, length), PAD, np.int32)
            for row, example in enumerate(some):
                tokens[row, : len(example.tokens)] = example.tokens
            chosen = np.asarray(likeliest(params, tokens))
            for row, example in enumerate(some):
                *places, end = np.flatnonzero(np.array(example.kinds) == HOLE)
                num_right = sum(chosen[row, place - 1] == tokens[row, place] for place in places)
                lines.append((len(places), int(num_right), int(chosen[row, end - 1]) in ends))
        figures[language] = ExactMatches(
            num_lines=len(lines),
            num_exact=sum(num_tokens == num_right and is_ended for num_tokens, num_right, is_ended in lines),
            num_ended=sum(is_ended for _, _, is_ended in lines),
            num_tokens=sum(num_tokens for num_tokens, _, _ in lines),
            num_likeliest=sum(num_right for _, num_right, _ in lines),
        )
    return figures


def _likeliest(model: ModelConfig, params: Tree, tokens: jax.Array) -> jax.Array:
    module = merge_params(model, params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jnp.argmax(module.logits(module(tokens, positions, attend_causally_in_blocks)), axis=-1)
