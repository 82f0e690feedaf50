"""Nearest neighbours by inner product: the obvious way, and ScaNN.

Both answer the same question with the same face. `ExactNeighbours` compares with every vector: it is what small sets
use, what is used where ScaNN has no wheel, and the oracle of the other. `ScannNeighbours` partitions and quantises
(Guo et al., "Accelerating Large-Scale Inference with Anisotropic Vector Quantization", 2020), with every vector in a
second partition for queries that miss the first (Sun et al., "SOAR: Improved Indexing for Approximate Nearest Neighbor
Search", 2023).

ScaNN is not transactional: a call that fails half-way shifts its ids. So everything is checked before it is called, a
call that fails all the same marks the index broken for good, and whoever holds it goes back to the exact one. Deleting
from an index with second partitions ends the process (1.4.2), so deleted vectors stay in it and are left out of what is
found. It is never saved: its files hold a pickle, and building it anew takes seconds.

Knows ids and vectors. Not thread-safe: the holder has one lock around everything.
"""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from cache.errors import VectorError

Found = list[tuple[int, float]]
"""Ids with their inner products, best first; fewer than asked for when there are no more, or none was found."""

FEWEST_FOR_SCANN = 2_048
"""Below this many vectors comparing with all of them is as fast, and partitions could not be learnt from them."""
_SPARE = 12
"""Neighbours asked for beyond those wanted, since some may have been deleted."""
_SEARCHED_SHARE = 0.15
_DIMENSIONS_PER_CODE = 4
_REORDERED = 200
"""How many partitions are searched, how coarse the codes are and how many candidates are compared exactly: chosen on
100,000 places of real code, `docs/decisions/0008`."""


class Neighbours(Protocol):
    """A set of vectors that can be asked for the nearest ones."""

    def __len__(self) -> int: ...

    def insert(self, name: int, vector: np.ndarray) -> None:
        """Add a vector under a new id."""

    def delete(self, name: int) -> None:
        """Remove the vector of an id."""

    def search(self, vector: np.ndarray, count: int) -> Found:
        """Return the nearest ones."""


def check_vector(vector: np.ndarray, dimension: int) -> np.ndarray:
    """Return a vector as float32 `[dimension]`; raises VectorError for anything that is none."""
    checked = np.asarray(vector)
    if checked.shape != (dimension,) or checked.dtype.kind not in "fiu":
        raise VectorError(
            f"the embedder gave a vector of shape {checked.shape} and type {checked.dtype}; "
            f"expected {dimension} numbers, as its dimension says"
        )
    checked = checked.astype(np.float32)
    if not np.isfinite(checked).all():
        raise VectorError("the embedder gave a vector with NaN or infinity; expected finite numbers")
    return checked


def has_scann() -> bool:
    """Tell whether ScaNN is installed; it has no wheels for some systems."""
    return find_spec("scann") is not None


class ExactNeighbours:
    """Compares with every vector."""

    def __init__(self, dimension: int) -> None:
        self._matrix = np.empty((64, dimension), np.float32)
        self._names: list[int] = []
        self._rows: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def num_bytes(self) -> int:
        return self._matrix.nbytes

    @property
    def names(self) -> list[int]:
        """The ids, in the order of `matrix`."""
        return self._names.copy()

    @property
    def matrix(self) -> np.ndarray:
        """The vectors `[len, dimension]`; a view that the next change may overwrite."""
        return self._matrix[: len(self._names)]

    def insert(self, name: int, vector: np.ndarray) -> None:
        """Add a vector under a new id."""
        assert name not in self._rows, f"id {name} is there already"
        row = len(self._names)
        if row == len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
        self._matrix[row] = vector
        self._names.append(name)
        self._rows[name] = row

    def delete(self, name: int) -> None:
        """Remove a vector; the last one takes its place."""
        row, last = self._rows.pop(name), self._names.pop()
        if last != name:
            self._matrix[row] = self._matrix[len(self._names)]
            self._names[row] = last
            self._rows[last] = row

    def vector_of(self, name: int) -> np.ndarray:
        """Return the vector of an id; a view that the next change may overwrite."""
        vector: np.ndarray = self._matrix[self._rows[name]]
        return vector

    def search(self, vector: np.ndarray, count: int) -> Found:
        """Return the nearest ones."""
        scores = self.matrix @ vector
        if len(scores) > count:
            nearest = np.argpartition(-scores, count)[:count]
            nearest = nearest[np.argsort(-scores[nearest], kind="stable")]
        else:
            nearest = np.argsort(-scores, kind="stable")
        return [(self._names[row], float(scores[row])) for row in nearest.tolist()]

    def check_integrity(self) -> None:
        """Assert that ids and rows belong together."""
        assert {name: row for row, name in enumerate(self._names)} == self._rows, "ids and rows do not belong together"
        assert len(self._matrix) >= len(self._names), "there are more ids than rows"


class ScannNeighbours:
    """Searches a few partitions of quantised vectors, and compares exactly with the best of them."""

    def __init__(self, names: Sequence[int], matrix: np.ndarray) -> None:
        """Learn partitions and codes from float32 `[len, dimension]`: seconds, on one thread, without the GIL."""
        from scann.scann_ops.py import scann_ops_pybind

        assert len(names) == len(set(names)) == len(matrix) >= FEWEST_FOR_SCANN, "ids and vectors do not fit"
        num_leaves = round(math.sqrt(len(matrix)))
        builder = scann_ops_pybind.builder(np.ascontiguousarray(matrix, np.float32), 4 + _SPARE, "dot_product")
        builder = builder.set_n_training_threads(1).tree(
            num_leaves=num_leaves,
            num_leaves_to_search=max(16, round(_SEARCHED_SHARE * num_leaves)),
            training_sample_size=min(len(matrix), 50_000),
            soar_lambda=1.5,
        )
        builder = builder.score_ah(_DIMENSIONS_PER_CODE, anisotropic_quantization_threshold=0.2).reorder(_REORDERED)
        self._searcher: Any = builder.build(docids=list(names))
        self._names = set(names)
        self.is_broken = False
        """Whether a call failed half-way; nothing it says can be trusted any more."""

    def __len__(self) -> int:
        return len(self._names)

    def insert(self, name: int, vector: np.ndarray) -> None:
        """Add a vector under a new id; raises what ScaNN raises, and is broken then."""
        assert name not in self._names, f"id {name} is there already"
        try:
            self._searcher.upsert([name], vector[None], 1)
        except BaseException:
            self.is_broken = True
            raise
        self._names.add(name)

    def delete(self, name: int) -> None:
        """Leave the vector of an id out of what is found from now on."""
        assert name in self._names, f"id {name} is not there"
        self._names.remove(name)

    def search(self, vector: np.ndarray, count: int) -> Found:
        """Return about the nearest ones; fewer when most of those nearby were deleted."""
        names, scores = self._searcher.search(vector, final_num_neighbors=count + _SPARE)
        living = [
            (name, score)
            for name, score in zip(names, scores.tolist(), strict=True)
            if name in self._names and math.isfinite(score)
        ]
        return living[:count]

    def check_integrity(self) -> None:
        """Assert that ScaNN knows exactly our ids."""
        assert not self.is_broken, "the index broke and is still used"
        assert self._searcher.size() == len(self._searcher.docids), "ScaNN has other numbers of vectors and ids"
        assert self._names <= set(self._searcher.docids), "an id is not in the index"
