"""Drafts change no distribution: whole completions, sampled through the engine with and without a draft, against the
probabilities that the model gives them.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from engine.engine import Engine
from engine.fim import build_prompt
from engine.model.transformer import attend_causally
from engine.types import Request, SamplingParams
from engine.weights.load import load_model
from tests.engine.conftest import TINY_MODEL
from tests.engine.real_engine import Given, run

BEFORE, DRAFT = "self.x = self.", "widthwidthwidth"  # the draft is what the model would write greedily
LENGTH, TOP_K, TEMPERATURE = 3, 4, 0.9
NUM_SEEDS = 2000
LEAST_P = 1e-3


class Telling(Engine):
    """Keeps the tokens of each request."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        self.taken: dict[str, list[int]] = {}

    @property
    def num_given(self) -> int:
        return self._acceptance.counts()["given"].num_drafts

    def _take_token(self, sequence, token):
        self.taken.setdefault(sequence.request.request_id, []).append(token)
        return super()._take_token(sequence, token)


@pytest.fixture(scope="module")
def loaded():
    return load_model(TINY_MODEL, dtype=jnp.float32)


def exact(
    loaded, num_tokens: int, stop_ids: tuple[int, ...], prompt: tuple[int, ...], *, temperature: float
) -> dict[tuple[int, ...], float]:
    """The probability of every completion that can be drawn, from the model alone, everything computed anew.

    Ids from `num_tokens` on have no text; `stop_ids` end a completion.
    """
    model = nnx.merge(loaded.graphdef, loaded.weights)

    @jax.jit
    def logits(tokens):
        return model.logits(model(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), attend_causally))

    found: dict[tuple[int, ...], float] = {(): 1.0}
    for position in range(len(prompt) - 1, len(prompt) - 1 + LENGTH):
        batch = np.zeros((TOP_K ** (LENGTH - 1), len(prompt) + LENGTH), np.int32)
        running = {begun: chance for begun, chance in found.items() if not set(begun) & set(stop_ids)}
        for row, begun in enumerate(running):
            batch[row, : position + 1] = [*prompt, *begun]
        scores = np.asarray(logits(batch))[:, position, :num_tokens] / temperature
        longer = {begun: chance for begun, chance in found.items() if begun not in running}
        for (begun, chance), row in zip(running.items(), scores, strict=False):
            best = np.argsort(-row)[:TOP_K]
            shares = np.exp(row[best] - row[best].max())
            longer |= {
                (*begun, int(token)): chance * float(share)
                for token, share in zip(best, shares / shares.sum(), strict=True)
            }
        found = longer
    return found


def p_value(counts: Counter, chances: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square; completions expected fewer than five times are one cell."""
    total = sum(counts.values())
    assert set(counts) <= set(chances), "a completion that cannot be drawn"
    common = [one for one, chance in chances.items() if chance * total >= 5]
    seen = [counts[one] for one in common]
    wanted = [chances[one] * total for one in common]
    seen, wanted = [*seen, total - sum(seen)], [*wanted, total - sum(wanted)]
    if wanted[-1] < 5:
        rare, rare_wanted = seen.pop(), wanted.pop()
        seen[-1] += rare
        wanted[-1] += rare_wanted
    return float(stats.chisquare(seen, wanted).pvalue)


@pytest.mark.parametrize("has_drafts", [True, False], ids=["drafts", "no drafts"])
def test_sampled_completions_have_the_models_probabilities(loaded, tokenizer, template, has_drafts: bool) -> None:
    engine = Given(tokenizer, template).engine(
        loaded, Telling, num_slots=8, max_context=64, max_waiting=NUM_SEEDS, drafts=has_drafts, token_healing=False
    )
    requests = [
        Request(
            request_id=str(seed),
            before=BEFORE,
            draft=DRAFT,
            sampling=SamplingParams(temperature=TEMPERATURE, top_k=TOP_K, seed=seed, max_tokens=LENGTH),
        )
        for seed in (range(NUM_SEEDS) if has_drafts else range(NUM_SEEDS, 2 * NUM_SEEDS))
    ]
    assert all(recorder.finish.state == "finished" for recorder in run(engine, requests))
    prompt = build_prompt(requests[0], tokenizer, template, max_prompt_tokens=60, heals=False).tokens
    counts = Counter(tuple(tokens) for tokens in engine.taken.values())
    right, wrong = (
        exact(loaded, tokenizer.num_tokens, template.stop_ids, prompt, temperature=TEMPERATURE * factor)
        for factor in (1, 0.8)
    )
    assert p_value(counts, right) > LEAST_P, counts
    assert p_value(counts, wrong) < LEAST_P, "a bound that lets another temperature pass says nothing"
    told = engine.stats()
    if has_drafts:
        assert told.num_drafted_tokens > NUM_SEEDS
        assert 0.2 < told.num_accepted_tokens / told.num_drafted_tokens < 0.8, "both outcomes must occur often"
        assert engine.num_given > 100, "the text that was given must be among what is tried"
    else:
        assert told.num_drafted_tokens == 0
