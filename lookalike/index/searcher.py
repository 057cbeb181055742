"""Search of a gallery: from features to ranked rows, through its refinement and index, with or without words."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lookalike.refinement.refinement import Refinement

NOBODY = np.zeros((0, 0), dtype=np.int64)
BLOCK = 65_536  # images that share a word with the query, compared at a time


class Rows(Protocol):
    """Interface that a searcher needs: an index, or one with changes (lookalike/collection/overlay.py)."""

    def __len__(self) -> int:
        """Return N, the number of images."""

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See Index.search."""

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """See Index.vectors."""


@dataclass(frozen=True)
class Matched:
    """Images that share a word with a query: rows, int64 (m,), ascending, and cosines, float32 (m,), above 0."""

    rows: np.ndarray
    cosines: np.ndarray


@dataclass(frozen=True)
class Fused:
    """Hits of a picture and words together, best first: arrays of up to k.

    rows     int64.
    cosines  float32, what hits are ranked by: (1 - w) visual + w text.
    visual   float32, cosine of the refined vectors.
    text     float32, cosine of the words; 0 for an image that shares none.
    """

    rows: np.ndarray
    cosines: np.ndarray
    visual: np.ndarray
    text: np.ndarray


class Searcher:
    """Refinement and index of one gallery, searched together."""

    def __init__(self, refinement: Refinement, index: Rows) -> None:
        """Take a refinement and an index that were built on the same gallery."""
        self.refinement, self.index = refinement, index

    def search(
        self, features: np.ndarray, k: int, exclude: np.ndarray = NOBODY, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k images most similar to each query, best first.

        features  float32, (Q, D), the network's output.
        k         1 to N.
        exclude   int64, (Q, m): gallery rows that a query may neither find nor use, padded with -1.
        allowed   bool, (N,): the rows that may be found; None for all. Query expansion uses all rows.

        Returns cosines, float32 (Q, k), of the refined vectors, and gallery rows, int64 (Q, k). Where fewer than k
        images remain, rows are -1. Re-ranking changes the order, not the cosines.
        """
        return self.search_projected(self.refinement.project(features), k, exclude, allowed)

    def search_projected(
        self, queries: np.ndarray, k: int, exclude: np.ndarray = NOBODY, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search as `search` does, with projected queries or vectors of the index: float32 (Q, d)."""
        queries = self.refinement.expand(queries, lambda asked, n: self._nearest(asked, n, exclude), self.index.vectors)
        count = max(k, min(self.refinement.settings.rerank, len(self.index)))
        cosines, rows = self._nearest(queries, count, exclude, allowed)
        self.refinement.reorder(queries, cosines, rows, self.index.vectors)
        return cosines[:, :k], rows[:, :k]

    def fuse(
        self, query: np.ndarray, matched: Matched, weight: float, k: int, allowed: np.ndarray | None = None
    ) -> Fused:
        """Find the k images most similar by picture and words: late fusion with one weight.

            cosine = (1 - w) cos(query, image) + w cos(words of the query, words of the image)

        query    float32, (1, d), projected, or a vector of the index.
        matched  all images that share a word and may be found.
        weight   w, 0 to 1. At 1 only images that share a word are found.
        allowed  as in `search`.

        The candidates are the k images nearest to the picture, and all of `matched`; their stored vectors are compared.
        No other image can be among the first k: it shares no word, and k images are at least as near. The result is
        therefore as exact as the index. Re-ranking is not applied.

        The sum is the inner product of concatenated vectors: the picture's times sqrt(1 - w), the words' times sqrt(w).
        Source: Atrey, Hossain, El Saddik, Kankanhalli, Multimodal fusion for multimedia analysis: a survey, Multimedia
        Systems 16, 2010: linear weighted fusion at the decision level.
        """
        query = self.refinement.expand(query, lambda asked, n: self._nearest(asked, n, NOBODY), self.index.vectors)
        rows = matched.rows
        if weight < 1:
            _, near = self._nearest(query, min(k, len(self.index)), NOBODY, allowed)
            rows = np.union1d(rows, near[near >= 0])
        blocks = [self.index.vectors(rows[start : start + BLOCK]) @ query[0] for start in range(0, len(rows), BLOCK)]
        visual = np.clip(np.concatenate(blocks), -1, 1) if blocks else np.zeros(0, np.float32)
        text = np.zeros(len(rows), np.float32)
        text[np.searchsorted(rows, matched.rows)] = matched.cosines
        cosines = (1 - weight) * visual + weight * text
        order = np.argsort(-cosines, kind="stable")[:k]  # ties keep the order of rows
        return Fused(rows[order], cosines[order], visual[order], text[order])

    def _nearest(
        self, queries: np.ndarray, k: int, exclude: np.ndarray, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if not exclude.size:
            return self.index.search(queries, min(k, len(self.index)) if allowed is None else k, allowed)
        cosines, rows = self.index.search(queries, min(k + exclude.shape[1], len(self.index)), allowed)
        unwanted = (rows[:, :, None] == exclude[:, None, :]).any(axis=2)  # (Q, k + m)
        rows[unwanted] = -1
        order = np.argsort(unwanted, axis=1, kind="stable")[:, :k]  # unwanted rows last, the order kept
        return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(rows, order, axis=1)
