"""Tuning of an index's effort to a target recall. Cost is counted in compared vectors, never in time."""

from dataclasses import dataclass

import numpy as np

from lookalike.index.base import TARGET_K, Index

SAMPLE = 1000  # queries for tuning, in a collection of 10,000 images or more
MOST = 4096  # the largest efSearch or nprobe tried
TIED = 1e-6  # a cosine within this of the tenth counts as equally near
BLOCK = 8192  # vectors compared at a time; more take gigabytes and are not faster


def draw(count: int, seed: int) -> np.ndarray:
    """Draw the rows of the sample: int64, sorted; a tenth of a small collection, none of a single image."""
    size = min(SAMPLE, max(count // 10, 1), count - 1)
    return np.sort(np.random.default_rng(seed).choice(count, max(size, 0), replace=False))


@dataclass(frozen=True)
class Sample:
    """Images held out of an index while it is tuned, as queries.

    An index finds its own images with far less effort than new ones: tuned on its own, it would miss its target in use.

    held     int64, (Q,): their rows, sorted.
    queries  float32, (Q, D), unit length.
    kth      float32, (Q,): the cosine of the k-th nearest row that is not held; k is 10, or all such rows.
    vectors  float32, (N, D): the gallery, before the storage rounds it.
    """

    held: np.ndarray
    queries: np.ndarray
    kth: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, held: np.ndarray, queries: np.ndarray) -> "Sample":
        """Make a sample: find the true neighbours by comparing with every vector that is not held."""
        cosines, _ = nearest_others(queries, vectors, held, TARGET_K)
        return cls(held, queries, cosines[:, -1] if cosines.shape[1] else np.zeros(len(queries), np.float32), vectors)

    @property
    def k(self) -> int:
        """Number of neighbours that count."""
        return min(TARGET_K, len(self.vectors) - len(self.held))

    def recall(self, rows: np.ndarray) -> float:
        """Compute recall@k: the share of the k nearest that were found; ties count as found.

            recall@k = mean over queries of (found rows whose cosine >= the k-th true cosine - 1e-6) / k

        rows  int64, (Q, k), -1 where nothing was found. The recall of an empty sample is 1.

        Source: faiss contrib/evaluation.py, which also compares distances, so that ties cost nothing.
        """
        if not len(self.queries) or not self.k:
            return 1.0
        cosines = np.einsum("qd,qkd->qk", self.queries, self.vectors[np.maximum(rows, 0)])
        good = (rows >= 0) & (cosines >= self.kth[:, None] - TIED)
        return float(good.sum(axis=1).mean() / self.k)


def nearest_others(queries: np.ndarray, vectors: np.ndarray, held: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows that are not held, or all of these if they are fewer than k.

    Returns cosines, float32 (Q, k), best first, and rows, int64 (Q, k).
    """
    k = min(k, len(vectors) - len(held))
    best = np.zeros((len(queries), 0), np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(vectors)))
        cosines = queries @ vectors[block[0] : block[-1] + 1].T  # (Q, B)
        cosines[:, np.isin(block, held)] = -np.inf
        best = np.concatenate([best, cosines], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(block, cosines.shape)], axis=1)
        if best.shape[1] > k:
            first = np.argpartition(-best, k - 1, axis=1)[:, :k]
            best, rows = np.take_along_axis(best, first, axis=1), np.take_along_axis(rows, first, axis=1)
    order = np.lexsort((rows, -best), axis=1)
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)


@dataclass(frozen=True)
class Tuned:
    """An index, the recall it reaches on a sample, and the comparisons it makes per query."""

    index: Index
    recall: float
    distances: float


def tune(index: Index, sample: Sample, target: float) -> Tuned:
    """Find the least effort whose recall on the sample reaches the target; if none does, the largest effort.

    index  an approximate index must not hold the sample's images.

    Recall is assumed to rise with effort: the effort is doubled until it suffices, then found by bisection.
    """
    if index.kind == "flat":
        return Tuned(index, _flat_recall(index, sample), float(len(index)))
    tried: dict[int, tuple[float, float]] = {}

    def recall(effort: int) -> float:
        rows, compared = index.distances(sample.queries, max(1, sample.k), effort)
        tried[effort] = sample.recall(rows), compared / max(1, len(sample.queries))
        return tried[effort][0]

    enough, most = (1, index.design.lists) if index.design.lists else (TARGET_K, max(len(index), TARGET_K))
    most, low = min(MOST, most), enough - 1
    while recall(enough) < target and enough < most:
        low, enough = enough, min(2 * enough, most)
    while enough - low > 1 and tried[enough][0] >= target:
        middle = (low + enough) // 2
        low, enough = (middle, enough) if recall(middle) < target else (low, middle)
    return Tuned(index.tuned(enough), *tried[enough])


def _flat_recall(index: Index, sample: Sample) -> float:
    """Compute the recall of a flat index, which holds the sample too: it misses only by its storage's rounding."""
    if index.design.storage == "float32" or not len(sample.queries) or not sample.k:
        return 1.0
    others = np.ones(len(index), dtype=bool)
    others[sample.held] = False
    return sample.recall(index.search(sample.queries, sample.k, others)[1])
