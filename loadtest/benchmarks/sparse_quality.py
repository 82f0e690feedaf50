"""`bench sparse-quality`: does the starter model still answer as well when half of the blocks are left out?

Rows of held-out projects (`python -m engine.training rows`), named by CLOUDCOMPLETE_ROWS, whose prompts fill the
model's context, are answered twice: densely, and sparsely with `_BLOCKS` blocks kept per choice. Whatever is said of
the difference is of the same rows. The share of attention that the kept blocks really have is computed layer by layer
beside dense attention, on some of the rows.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import nnx

from engine.engine import Engine
from engine.fim import FimTemplate, build_prompt
from engine.loader import STARTER
from engine.model.block_sparse import BLOCK, Selection, block_scores, choose_blocks
from engine.tokenizer import Tokenizer
from engine.types import ContextChunk, Output, Request, SamplingParams, SparseMode
from engine.weights.load import load_model
from loadtest.benchmarks.shapes import make_benches
from loadtest.errors import RunError
from loadtest.rows import Row, read_rows
from loadtest.scores import edit_similarity, first_line, is_exact_match, is_single_line

ROWS = "CLOUDCOMPLETE_ROWS"
_BLOCKS = 9
"""Of the 32 of a full context: a choice sees 16.5 on average, and keeps 7.9."""
_MOST_ROWS = 400
_MAX_TOKENS = 48
_LEAST_TOKENS = 1900
_MASS_ROWS = 24
_BOOTSTRAPS = 10_000


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answer and compare; intervals are 95 % of a paired bootstrap over the rows."""
    path = os.environ.get(ROWS)
    if path is None:
        raise RunError(
            f"this benchmark needs rows of held-out projects; expected {ROWS} to name a file of them, got nothing; "
            "make one with `python -m engine.training rows FILE`"
        )
    [bench] = make_benches(lambda _: None, {"starter": STARTER}, num_slots=1, prefix_store_mb=0, sparse_blocks=_BLOCKS)
    tokenizer = Tokenizer.from_directory(STARTER)
    template = FimTemplate.detect(tokenizer)
    asked: list[tuple[Row, Request, tuple[int, ...]]] = []
    for row in read_rows(Path(path)).usable:
        if not is_single_line(row.canonical_solution):
            continue
        request = _request(row, f"{len(asked)}")
        prompt = build_prompt(request, tokenizer, template, max_prompt_tokens=bench.model.max_context - _MAX_TOKENS)
        if len(prompt.tokens) >= _LEAST_TOKENS:
            asked.append((row, request, prompt.tokens))
    asked = asked[:: -(-len(asked) // _MOST_ROWS) or 1]
    on_progress(f"{len(asked)} rows fill the context")
    results: list[dict[str, Any]] = []
    for row, request, prompt_tokens in asked:
        dense, sparse = (_answer(bench.engine, request, mode) for mode in ("off", "on"))
        results.append({
            "task_id": row.task_id,
            "prompt_tokens": len(prompt_tokens),
            "dense_exact": is_exact_match(dense, row.canonical_solution),
            "sparse_exact": is_exact_match(sparse, row.canonical_solution),
            "dense_similarity": edit_similarity(dense, row.canonical_solution),
            "sparse_similarity": edit_similarity(sparse, row.canonical_solution),
            "is_unchanged": dense == sparse,
        })  # fmt: skip
        if len(results) % 20 == 0:
            found = summarise(results)
            exact = " and ".join(f"{found[f'exact_match_{mode}']:.3f}" for mode in ("dense", "sparse"))
            on_progress(f"{len(results)} of {len(asked)}: exact {exact}, unchanged {found['unchanged']:.2f}")
    stats = bench.engine.stats()
    headline: dict[str, float] = {"rows": float(len(results)), **summarise(results)}
    headline["kept_blocks"] = stats.num_kept_blocks / max(1, stats.num_visible_blocks)
    headline["kept_mass_by_scores"] = stats.kept_mass
    every = max(1, len(asked) // _MASS_ROWS)
    masses = _kept_mass([tokens for _, _, tokens in asked[::every]][:_MASS_ROWS])
    for layer, mass in enumerate(masses):
        headline[f"kept_mass_layer_{layer}"] = mass
    return headline, results


def summarise(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return exact matches, their relative change and the other figures, with intervals."""
    names = ("dense_exact", "sparse_exact", "dense_similarity", "sparse_similarity", "is_unchanged")
    table = np.array([[float(result[name]) for name in names] for result in results])
    picks = np.random.default_rng(0).integers(0, len(table), (_BOOTSTRAPS, len(table)))
    means = np.stack([table[:, i][picks].mean(1) for i in range(len(names))])
    relative = means[1] / np.maximum(means[0], 1e-9) - 1
    dense, sparse, dense_similarity, sparse_similarity, unchanged = table.mean(0).tolist()
    return {
        "exact_match_dense": dense,
        "exact_match_sparse": sparse,
        "exact_match_relative_change": sparse / dense - 1 if dense else 0.0,
        "exact_match_relative_change_low": float(np.percentile(relative, 2.5)),
        "exact_match_relative_change_high": float(np.percentile(relative, 97.5)),
        "edit_similarity_dense": dense_similarity,
        "edit_similarity_change": sparse_similarity - dense_similarity,
        "edit_similarity_change_low": float(np.percentile(means[3] - means[2], 2.5)),
        "edit_similarity_change_high": float(np.percentile(means[3] - means[2], 97.5)),
        "unchanged": unchanged,
        "unchanged_low": float(np.percentile(means[4], 2.5)),
        "unchanged_high": float(np.percentile(means[4], 97.5)),
    }


def _request(row: Row, name: str) -> Request:
    return Request(
        request_id=name,
        before=row.prompt,
        after=row.suffix,
        cut=row.prompt.rfind("\n") + 1,
        path=row.path or "",
        context=tuple(ContextChunk(path=chunk.path, text=chunk.text) for chunk in row.context or ()),
        sampling=SamplingParams(max_tokens=_MAX_TOKENS, stop=("\n",)),
        is_fresh=True,
    )


def _answer(engine: Engine, request: Request, mode: SparseMode) -> str:
    outputs: list[Output] = []
    engine.submit(msgspec.structs.replace(request, sparse=mode), outputs.append)
    while engine.has_work():
        engine.step()
    return first_line("".join(output.text for output in outputs))


def _kept_mass(prompts: list[tuple[int, ...]]) -> list[float]:
    """Return by layer the mean share of a query's attention that its kept blocks have, where blocks are left out."""
    loaded = load_model(STARTER, dtype=jnp.float32)

    @jax.jit
    def run(tokens: jax.Array) -> jax.Array:
        model, masses, length = nnx.merge(loaded.graphdef, loaded.weights), [], tokens.shape[0]

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            del layer
            keys, start = k.transpose(1, 0, 2), jnp.array(0)
            told = jnp.array(Selection(1, length, 0, 0, _BLOCKS), jnp.int32)
            kept, _ = choose_blocks(block_scores(q, keys, start, told[1]), start, told, num_kept=_BLOCKS)
            grouped = q.reshape(length, keys.shape[0], -1, q.shape[-1])
            scores = jnp.einsum("tkgh,ksh->kgts", grouped, keys) * q.shape[-1] ** -0.5
            weights = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf))
            seen = jnp.repeat(jnp.repeat(kept, BLOCK, axis=1), BLOCK, axis=2)
            shares = jnp.where(seen[:, None], weights, 0).sum(-1)
            masses.append(shares[..., _BLOCKS * BLOCK :].mean())
            return jnp.einsum("kgts,skh->tkgh", weights, v).reshape(q.shape)

        model(tokens, jnp.arange(length), attend)
        return jnp.stack(masses)

    length = _LEAST_TOKENS // BLOCK * BLOCK
    means = np.mean([np.asarray(run(jnp.array(tokens[:length]))) for tokens in prompts], axis=0)
    return [float(mean) for mean in means]
