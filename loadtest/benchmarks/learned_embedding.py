"""A learned static embedding of places, as a candidate to measure: never served.

The features are those of the hashed embedding (`cache.embedder.token_features`); each bucket has a learned vector, each
weight a learned gate. Trained so that places with the same rest of the line are nearer to each other than to the other
places of a batch (InfoNCE: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018).
Stored as int8 it would be 1 MB.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cache.embedder import token_features
from loadtest.benchmarks.code_places import Place

DIMENSION = 64
_BUCKETS = 16_384
_FEATURES = 56
_GATES = 64
_BATCH = 512
_STEPS = 1_000
_TEMPERATURE = 1 / 16
_PER_CALL = 2_000

Features = tuple[Any, Any]
"""Buckets and gates, int32 `[places, features]`; the last bucket stands for nothing."""


class LearnedTokens:
    """Trains on places, then embeds others."""

    def __init__(self, places: Sequence[Place], on_progress: Callable[[str], None]) -> None:
        """Train: a minute or several."""
        chooser = np.random.default_rng(0)
        features = _features(places)
        groups = defaultdict[str, list[int]](list)
        for number, place in enumerate(places):
            groups[place.rest_of_line].append(number)
        alike = [numbers for numbers in groups.values() if len(numbers) > 1]
        shares = np.minimum([len(numbers) for numbers in alike], 8) ** 0.75
        optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, _STEPS))
        weights = {
            "table": jnp.asarray(chooser.normal(size=(_BUCKETS + 1, DIMENSION)) * 0.1, jnp.float32),
            "gates": jnp.asarray(2.0 ** (2 - np.arange(_GATES) / 4), jnp.float32),
        }
        state = optimizer.init(weights)

        @jax.jit
        def step(weights: Any, state: Any, left: Features, right: Features) -> tuple[Any, Any, jax.Array]:
            loss, gradients = jax.value_and_grad(_loss)(weights, left, right)
            updates, state = optimizer.update(gradients, state)
            return optax.apply_updates(weights, updates), state, loss

        for number in range(_STEPS):
            chosen = chooser.choice(len(alike), min(_BATCH, len(alike)), replace=False, p=shares / shares.sum())
            pairs = np.array([chooser.choice(alike[group], 2, replace=False) for group in chosen])
            left, right = ((features[0][rows], features[1][rows]) for rows in pairs.T)
            weights, state, loss = step(weights, state, left, right)
            if number % 500 == 0:
                on_progress(f"learned embedding: step {number:,} of {_STEPS:,}, loss {float(loss):.3f}")
        largest = float(jnp.abs(weights["table"]).max())
        weights["table"] = jnp.round(weights["table"] / largest * 127) * (largest / 127)  # as int8 would hold it
        self._weights = weights
        self._embed = jax.jit(_embed)

    def embed_all(self, places: Sequence[Place]) -> np.ndarray:
        """Return float32 `[places, DIMENSION]`."""
        buckets, gates = _features(places)
        parts = [
            np.asarray(self._embed(self._weights, buckets[at : at + _PER_CALL], gates[at : at + _PER_CALL]))
            for at in range(0, len(places), _PER_CALL)
        ]
        return np.concatenate(parts)


def _features(places: Sequence[Place]) -> Features:
    buckets = np.full((len(places), _FEATURES), _BUCKETS, np.int32)
    gates = np.zeros((len(places), _FEATURES), np.int32)
    for row, place in enumerate(places):
        hashes, weights = token_features(place.before)
        count = min(len(hashes), _FEATURES)
        spread = np.array(hashes[:count], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        buckets[row, :count] = (spread >> np.uint64(50)).astype(np.int32)
        gates[row, :count] = np.clip(np.round(8 - 4 * np.log2(weights[:count])), 0, _GATES - 1)
    return buckets, gates


def _embed(weights: Any, buckets: jax.Array, gates: jax.Array) -> jax.Array:
    scale = weights["gates"][gates] * (buckets < _BUCKETS)
    summed = jnp.einsum("pfd,pf->pd", weights["table"][buckets], scale)
    normed: jax.Array = summed / (jnp.linalg.norm(summed, axis=1, keepdims=True) + 1e-6)
    return normed


def _loss(weights: Any, left: Features, right: Features) -> jax.Array:
    scores = _embed(weights, *left) @ _embed(weights, *right).T / _TEMPERATURE
    loss: jax.Array = -jnp.mean(jnp.diag(jax.nn.log_softmax(scores, 0)) + jnp.diag(jax.nn.log_softmax(scores, 1))) / 2
    return loss
