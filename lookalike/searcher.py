"""Features in, ranked rows out: a gallery's refinement and its index, asked together."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from lookalike import indexes
from lookalike.errors import LookalikeError
from lookalike.indexes.tuning import Tuned
from lookalike.refine import Refinement

NOBODY = np.zeros((0, 0), dtype=np.int64)


class Rows(Protocol):
    """What a searcher asks: an index, or one with changes on top (lookalike/changed.py)."""

    def __len__(self) -> int:
        """N."""

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See Index.search."""

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """See Index.vectors."""


class Searcher:
    """A gallery's refinement and index, asked together."""

    def __init__(self, refinement: Refinement, index: Rows) -> None:
        """Take the two as they were built on the same gallery."""
        self.refinement, self.index = refinement, index

    def search(
        self, features: np.ndarray, k: int, exclude: np.ndarray = NOBODY, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query, best first.

        features  float32, (Q, D), as the network gives them.
        k         1 to N.
        exclude   int64, (Q, m): gallery rows that a query must neither find nor use, padded with -1.
        allowed   bool, (N,): the rows that may be found; expansion uses all. None for all.

        Returns cosines, float32 (Q, k), of the refined vectors, and gallery rows, int64 (Q, k). Where fewer than k
        images remain, rows are -1. Re-ranking changes the order, not the cosines.
        """
        return self.search_projected(self.refinement.project(features), k, exclude, allowed)

    def search_projected(
        self, queries: np.ndarray, k: int, exclude: np.ndarray = NOBODY, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, for queries that `refinement.project` made, or vectors of the index: float32 (Q, d)."""
        queries = self.refinement.expand(queries, lambda asked, n: self._nearest(asked, n, exclude), self.index.vectors)
        count = max(k, min(self.refinement.settings.rerank, len(self.index)))
        cosines, rows = self._nearest(queries, count, exclude, allowed)
        self.refinement.reorder(queries, cosines, rows, self.index.vectors)
        return cosines[:, :k], rows[:, :k]

    def _nearest(
        self, queries: np.ndarray, k: int, exclude: np.ndarray, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if not exclude.size:
            return self.index.search(queries, min(k, len(self.index)) if allowed is None else k, allowed)
        cosines, rows = self.index.search(queries, min(k + exclude.shape[1], len(self.index)), allowed)
        unwanted = (rows[:, :, None] == exclude[:, None, :]).any(axis=2)  # (Q, k + m)
        rows[unwanted] = -1
        order = np.argsort(unwanted, axis=1, kind="stable")[:, :k]  # the wanted first, in their order
        return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(rows, order, axis=1)


def build(
    features: np.ndarray,
    settings: indexes.Settings,
    tell: Callable[[str], None] = lambda message: None,
    progress: indexes.Progress = lambda rows: None,
) -> tuple[Refinement, Tuned, str]:
    """Fit the refinement on a gallery's features, float32 (N, D), and choose, build and tune an index of the result.

    Returns the refinement, the index with its recall, and why it is that index. Peak memory: one or, while augmenting,
    two times 4 N d bytes, the index, and blocks of a fixed size (docs/scaling.md). Raises LookalikeError for no images.
    """
    if not len(features):
        raise LookalikeError("there are no images to index; see data/processed/rejected.csv for why")
    refinement = Refinement.fit(features, settings.refine)
    vectors = refinement.gallery(features)
    with threadpool_limits(settings.threads):
        sample = _sample(features, refinement, vectors, settings.seed)
    tuned, why = indexes.choose(vectors, sample, settings, tell, progress)
    return refinement, tuned, why


def _sample(features: np.ndarray, refinement: Refinement, vectors: np.ndarray, seed: int) -> indexes.Sample:
    """Some of the gallery's images, drawn by seed, as a search for them would ask that does not know them."""
    held = indexes.draw(len(vectors), seed)

    def nearest(queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        return indexes.nearest_others(queries, vectors, held, n)

    queries = refinement.expand(refinement.project(features[held]), nearest, lambda rows: vectors[rows])
    return indexes.Sample.of(vectors, held, queries)
