"""The one object behind every face: features in, ranked hits out."""

from pathlib import Path

import numpy as np

from lookalike import indexes
from lookalike.refine import Refinement

NOBODY = np.zeros((0, 0), dtype=np.int64)


def build(features: np.ndarray, settings: indexes.Settings) -> "Searcher":
    """Fit the refinement on a gallery's features, float32 (N, D), and index the refined vectors."""
    refinement = Refinement.fit(features, settings.refine)
    return Searcher(refinement, indexes.build(refinement.gallery(features), settings))


def load(folder: Path) -> "Searcher":
    """Open what `index` wrote."""
    return Searcher(Refinement.load(folder, indexes.load_settings(folder).refine), indexes.load(folder))


class Searcher:
    """A gallery's refinement and index, asked together."""

    def __init__(self, refinement: Refinement, index: indexes.Index) -> None:
        """Take the two as they were built on the same gallery."""
        self.refinement, self.index = refinement, index

    def search(self, features: np.ndarray, k: int, exclude: np.ndarray = NOBODY) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query, best first.

        features  float32, (Q, D), as the network gives them.
        k         1 to N.
        exclude   int64, (Q, m): gallery rows that a query must neither find nor use, padded with -1.

        Returns cosines, float32 (Q, k), of the refined vectors, and gallery rows, int64 (Q, k). Where fewer than k
        images remain, rows are -1. Re-ranking changes the order, not the cosines.
        """

        def nearest(queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            return self._nearest(queries, count, exclude)

        queries = self.refinement.expand(self.refinement.project(features), nearest, self.index.vectors)
        cosines, rows = nearest(queries, max(k, self.refinement.settings.rerank))
        self.refinement.reorder(queries, cosines, rows, self.index.vectors)
        return cosines[:, :k], rows[:, :k]

    def _nearest(self, queries: np.ndarray, k: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, len(self.index))
        if not exclude.size:
            return self.index.search(queries, k)
        cosines, rows = self.index.search(queries, min(k + exclude.shape[1], len(self.index)))
        unwanted = (rows[:, :, None] == exclude[:, None, :]).any(axis=2)  # (Q, k + m)
        rows[unwanted] = -1
        order = np.argsort(unwanted, axis=1, kind="stable")[:, :k]  # the wanted first, in their order
        return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(rows, order, axis=1)
