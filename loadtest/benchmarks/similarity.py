"""`bench similarity`: the similarity tier at 100,000 places of real code.

Places are stored as a server would store them, one after another, while the tier builds its index in the background.
Then places of other files are asked for: how long the search for neighbours takes, how much of what comparing with
everything finds is found (the recall; of equally near neighbours either counts), what an insertion and a deletion cost,
and how much of a draft the programmer really wrote there. On a shared machine the processor's time of a search says
more than the clock's.
"""

import itertools
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cache.config import CacheConfig
from cache.embedder import HashedTokens
from cache.key import Answer, Key
from cache.neighbours import ExactNeighbours, Found, ScannNeighbours, has_scann
from cache.similarity_tier import SimilarityTier
from cache.worker import Worker
from loadtest.benchmarks.code_places import Place, common_chars, gather_places

NUM_ENTRIES = 100_000
NUM_QUERIES = 1_000
_NEIGHBOURS = 4
_NUM_CHANGES = 1_000
_ROUNDING = 1e-5
_MEGABYTE = 1 << 20
MIN_SCORE = CacheConfig().similar_min_score


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Fill a tier, search it, change it."""
    entries, queries = gather_places(NUM_ENTRIES, NUM_QUERIES)
    on_progress(f"{len(entries):,} places of installed code, {len(queries):,} queries of other files")
    embedder = HashedTokens()
    embed_us, vectors = _embed(embedder, entries)
    _, asked = _embed(embedder, queries)
    exact = ExactNeighbours(embedder.dimension)
    for name, vector in enumerate(vectors):
        exact.insert(name, vector)
    rows = [_measure_search("exact", exact, exact, asked[:200])]
    headline = {"embed_p50_us": embed_us, "entries": float(len(entries)), "exact_search_p95_ms": rows[0]["p95_ms"]}
    if has_scann():
        used_mb = _resident_mb()
        began = time.perf_counter()
        index = ScannNeighbours(range(len(entries)), vectors)
        headline |= {"build_s": time.perf_counter() - began, "index_mb": _resident_mb() - used_mb}
        on_progress(f"ScaNN's index built in {headline['build_s']:.1f} s")
        rows.append(_measure_search("scann", index, exact, asked))
        headline |= {"search_p50_ms": rows[-1]["p50_ms"], "search_p95_ms": rows[-1]["p95_ms"]}
        headline |= {"search_processor_p95_ms": rows[-1]["processor_p95_ms"]}
        headline |= {"recall": rows[-1]["recall"], "recall_of_all": rows[-1]["recall_of_all"]}
        headline |= _measure_changes(index, asked)
        rows.append(_measure_search("scann after changes", index, exact, asked))
    else:
        on_progress("the scann package is not installed: only the exact search is measured")
    rows += (drafts := _measure_drafts(entries, queries))
    headline |= {f"draft_{name}": value for name, value in drafts[0].items() if name != "what"}
    return headline, rows


def _embed(embedder: HashedTokens, places: Sequence[Place]) -> tuple[float, np.ndarray]:
    """Return the median microseconds of an embedding, and all vectors."""
    vectors, seconds = np.empty((len(places), embedder.dimension), np.float32), []
    for row, place in enumerate(places):
        began = time.perf_counter()
        vectors[row] = embedder.embed(place.before)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e6, vectors


def _measure_search(
    what: str, searched: ExactNeighbours | ScannNeighbours, exact: ExactNeighbours, asked: np.ndarray
) -> dict[str, Any]:
    """Time one search after another, and compare what is found with the nearest there are.

    The recall is of neighbours near enough to become a draft; `recall_of_all` also of those that the tier discards.
    """
    seconds, processor_seconds, answers = list[float](), list[float](), list[Found]()
    for query in asked:
        began, processor_began = time.perf_counter(), time.thread_time()
        answers.append(searched.search(query, _NEIGHBOURS))
        processor_seconds.append(time.thread_time() - processor_began)
        seconds.append(time.perf_counter() - began)
    num_found = num_useful = num_useful_found = 0
    for query, found in zip(asked, answers, strict=True):  # afterwards: it would drive the index out of the caches
        found_scores = [float(query @ exact.vector_of(name)) for name, _ in found]
        oracle_scores = [score for _, score in exact.search(query, _NEIGHBOURS)]
        is_near = [score >= oracle_scores[-1] - _ROUNDING for score in found_scores]
        num_found += sum(is_near)
        num_useful += sum(score >= MIN_SCORE for score in oracle_scores)
        num_useful_found += sum(
            near and score >= MIN_SCORE - _ROUNDING for near, score in zip(is_near, found_scores, strict=True)
        )
    row = {"what": what, "recall": num_useful_found / num_useful if num_useful else 1.0}
    row["recall_of_all"] = num_found / (_NEIGHBOURS * len(asked))
    for name, taken in (("", seconds), ("processor_", processor_seconds)):
        for percent in (50, 95, 99):
            row[f"{name}p{percent}_ms"] = float(np.percentile(taken, percent)) * 1e3
    return row


def _measure_changes(index: ScannNeighbours, vectors: np.ndarray) -> dict[str, float]:
    """Time insertions, and deletions of what was inserted."""
    seconds: dict[str, list[float]] = {"insert": [], "delete": []}
    names = range(1 << 40, (1 << 40) + _NUM_CHANGES)
    for name, vector in zip(names, itertools.cycle(vectors), strict=False):
        began = time.perf_counter()
        index.insert(name, vector)
        seconds["insert"].append(time.perf_counter() - began)
    for name in names:
        began = time.perf_counter()
        index.delete(name)
        seconds["delete"].append(time.perf_counter() - began)
    return {
        f"{what}_p{percent}_us": float(np.percentile(taken, percent)) * 1e6
        for what, taken in seconds.items()
        for percent in (50, 99)
    }


def _measure_drafts(entries: Sequence[Place], queries: Sequence[Place]) -> list[dict[str, Any]]:
    """Return what became of drafts: those that are tried, and all by their score."""
    worker = Worker("similarity-benchmark")
    tier = SimilarityTier(
        HashedTokens(), max_entries=len(entries), ttl_s=3600, min_score=0, worker=worker, now=lambda: 0
    )
    for place in entries:
        tier.store(_key(place), Answer(text=place.continuation, finish_reason="length"))
    worker.drain(timeout_s=600)
    scored = list[tuple[float, float, int]]()
    for place in queries:
        began = time.perf_counter()
        draft = tier.draft_for(_key(place))
        seconds = time.perf_counter() - began
        if draft is not None:
            scored.append((draft.score, seconds, common_chars(draft.text, place.continuation)))
    worker.close(timeout_s=600)
    rows = [_summary("drafts that are tried", [one for one in scored if one[0] >= MIN_SCORE], len(queries))]
    for low in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        high = low + 0.1 if low else 0.3
        chosen = [one for one in scored if low <= one[0] < high or (low == 0.9 and one[0] >= high)]
        rows.append(_summary(f"score from {low}", chosen, len(queries)))
    return rows


def _summary(what: str, scored: Sequence[tuple[float, float, int]], num_queries: int) -> dict[str, Any]:
    chars = [num_chars for _, _, num_chars in scored]
    return {
        "what": what,
        "share_of_queries": len(scored) / num_queries,
        "accepted_chars": statistics.fmean(chars) if chars else 0.0,
        "useful_share": sum(num > 0 for num in chars) / len(chars) if chars else 0.0,
        "p95_ms": float(np.percentile([seconds for _, seconds, _ in scored], 95)) * 1e3 if scored else 0.0,
    }


def _key(place: Place) -> Key:
    cut = place.before.rfind("\n") + 1
    return Key(tenant="", model="", template="", before=place.before, after="", cut=cut)


def _resident_mb() -> float:
    """Return the most memory that this process has had; grows only."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE
