"""`bench embedding`: which vector of a place finds places at which the same text follows.

Real code, entries and queries of different files. The recall counts queries for which any entry has the same rest of
the line: for what share of them is one of the nearest such an entry? The accepted characters are what a draft from the
nearest entry has in common with what the programmer wrote, over all queries. `docs/decisions/0008` has the choice.
"""

import statistics
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cache.embedder import HashedTokens
from cache.similarity_tier import HEAD_CHARS, fit
from engine.fim import FimTemplate
from engine.loader import STARTER
from engine.model.transformer import Transformer, attend_causally
from engine.tokenizer import Tokenizer
from engine.weights.load import load_model
from loadtest.benchmarks.code_places import Place, common_chars, gather_places

NUM_TRAINING = 40_000
NUM_ENTRIES = 12_000
NUM_QUERIES = 4_000
_NEAREST = 4
_STATE_TOKENS = 96
_STATE_BATCH = 64


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Embed the same places in every way and compare what their neighbours have to say."""
    training, entries, queries = gather_places(NUM_TRAINING, NUM_ENTRIES, NUM_QUERIES)
    rows = []

    def add(what: str, embed_all: Callable[[Sequence[Place]], np.ndarray]) -> None:
        began = time.perf_counter()
        vectors, asked = embed_all(entries), embed_all(queries)
        embed_us = (time.perf_counter() - began) / (len(entries) + len(queries)) * 1e6
        row = {"embedding": what, "dimension": vectors.shape[1], "embed_us": embed_us}
        row |= _judge(entries, vectors, queries, asked)
        rows.append(row)
        on_progress(
            f"{what:>24}/{row['dimension']:<5} recall {row['recall_at_1']:.3f} at 1, {row['recall_at_4']:.3f} at 4, "
            f"{row['accepted_chars']:.2f} characters a draft"
        )

    for dimension in (64, 128, 256, 384):
        add("hashed tokens", partial(_embed_each, HashedTokens(dimension).embed))
    add("hashed characters", partial(_embed_each, _hashed_characters))
    if find_spec("optax"):
        from loadtest.benchmarks.learned_embedding import LearnedTokens

        add("learned tokens", LearnedTokens(training, on_progress).embed_all)
    else:
        on_progress("the learned embedding needs optax: install cloudcomplete[training]")
    states = ModelStates()
    add("model's states", states.embed_all)
    add("model's states, centred", states.embed_all_centred)
    best = max(rows, key=lambda row: row["accepted_chars"])
    headline = {f"{row['embedding']}/{row['dimension']}": row["accepted_chars"] for row in rows}
    return {
        **{f"accepted_chars {name}": value for name, value in headline.items()},
        "queries_with_an_equal_entry": best["num_with_equal"],
    }, rows


class ModelStates:
    """The starter model's last hidden state at the cursor."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_directory(STARTER)
        self._template = FimTemplate.detect(self._tokenizer)
        loaded = load_model(STARTER, dtype=jnp.float32)
        self._mean: np.ndarray | None = None

        @jax.jit
        def run(weights: Any, tokens: jax.Array, last: jax.Array) -> jax.Array:
            model: Transformer = nnx.merge(loaded.graphdef, weights)
            positions = jnp.broadcast_to(jnp.arange(_STATE_TOKENS), tokens.shape)
            hidden = model(tokens, positions, attend_causally)
            return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

        self._run = lambda tokens, last: np.asarray(run(loaded.weights, tokens, last))

    def embed_all(self, places: Sequence[Place]) -> np.ndarray:
        """Return float32 `[places, D]` of length 1."""
        return _normed(self._states(places))

    def embed_all_centred(self, places: Sequence[Place]) -> np.ndarray:
        """The same without what all states have in common; the mean is that of the first places asked for."""
        states = self._states(places)
        if self._mean is None:
            self._mean = states.mean(axis=0)
        return _normed(states - self._mean)

    def _states(self, places: Sequence[Place]) -> np.ndarray:
        tokens = np.zeros((-(-len(places) // _STATE_BATCH) * _STATE_BATCH, _STATE_TOKENS), np.int32)
        last = np.zeros(len(tokens), np.int32)
        for row, place in enumerate(places):
            prompt = self._prompt(place)[-_STATE_TOKENS:]
            tokens[row, : len(prompt)] = prompt
            last[row] = len(prompt) - 1
        batches = range(0, len(tokens), _STATE_BATCH)
        parts = [self._run(tokens[at : at + _STATE_BATCH], last[at : at + _STATE_BATCH]) for at in batches]
        return np.concatenate(parts)[: len(places)]

    def _prompt(self, place: Place) -> list[int]:
        """Lay a place out as the engine does, with nothing after the cursor."""
        above, newline, line = place.before.rpartition("\n")
        return [
            self._template.prefix_id,
            *self._tokenizer.encode(above + newline)[-_STATE_TOKENS // 2 :],
            self._template.suffix_id,
            self._template.middle_id,
            *self._tokenizer.encode(line),
        ]


def _judge(
    entries: Sequence[Place], vectors: np.ndarray, queries: Sequence[Place], asked: np.ndarray
) -> dict[str, float]:
    rests = [place.rest_of_line.rstrip() for place in entries]
    known = Counter(rests)
    num_with_equal = num_first = num_any = 0
    accepted = []
    for place, query in zip(queries, asked, strict=True):
        scores = vectors @ query
        nearest = np.argpartition(-scores, _NEAREST)[:_NEAREST]
        nearest = nearest[np.argsort(-scores[nearest], kind="stable")]
        rest = place.rest_of_line.rstrip()
        if rest in known:
            equal = [rests[row] == rest for row in nearest]
            num_with_equal, num_first, num_any = num_with_equal + 1, num_first + equal[0], num_any + any(equal)
        found = entries[nearest[0]]
        draft = fit(found.before[-HEAD_CHARS:], found.continuation, place.before[-HEAD_CHARS:])
        accepted.append(common_chars(draft, place.continuation))
    return {
        "recall_at_1": num_first / num_with_equal,
        "recall_at_4": num_any / num_with_equal,
        "accepted_chars": statistics.fmean(accepted),
        "num_with_equal": num_with_equal,
    }


def _embed_each(embed: Callable[[str], np.ndarray], places: Sequence[Place]) -> np.ndarray:
    return np.stack([embed(place.before) for place in places])


def _hashed_characters(before: str, dimension: int = 256) -> np.ndarray:
    """Return hashed runs of three to five characters and exact endings, as `HashedTokens` does it for tokens."""
    text = before[-64:].encode()
    vector = np.zeros(dimension, np.float32)
    features = [
        (text[at : at + length], length, 2.0 ** (-(len(text) - length - at) / 8))
        for length in (3, 4, 5)
        for at in range(len(text) - length + 1)
    ]
    features += [(text[-length:], 99, 1.0) for length in (2, 4, 8, 12, 16, 24) if length <= len(text)]
    for piece, seed, weight in features:
        spread = zlib.crc32(piece, seed) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
        vector[(spread >> 33) % dimension] += weight if spread >> 32 & 1 else -weight
    normed: np.ndarray = _normed(vector[None])[0]
    return normed


def _normed(vectors: np.ndarray) -> np.ndarray:
    normed: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return normed.astype(np.float32)
