"""How hard an index must look to find what exact search finds: decided by recall, told in distances, never in time."""

from dataclasses import dataclass

import numpy as np

from lookalike.index.base import TARGET_K, Index

SAMPLE = 1000  # images that are looked for, of ten times as many or more
MOST = 4096  # efSearch or nprobe tried at most
TIED = 1e-6  # of a cosine: what is as near as the tenth is as good as the tenth
BLOCK = 8192  # vectors compared at a time: more take gigabytes, and are no quicker


def draw(count: int, seed: int) -> np.ndarray:
    """Rows of the sample: int64, sorted; a tenth of few images, none of one."""
    size = min(SAMPLE, max(count // 10, 1), count - 1)
    return np.sort(np.random.default_rng(seed).choice(count, max(size, 0), replace=False))


@dataclass(frozen=True)
class Sample:
    """Images that an index does not hold yet when it is tuned, as a search would ask for them.

    An index finds its own images with far less effort than new ones: tuned on those, it would miss its target in use.

    held     int64, (Q,): their rows, sorted.
    queries  float32, (Q, D), unit length.
    kth      float32, (Q,): the cosine of the k-th nearest row that is not held, k = 10 or all there are.
    vectors  float32, (N, D): the gallery before any storage's rounding.
    """

    held: np.ndarray
    queries: np.ndarray
    kth: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, held: np.ndarray, queries: np.ndarray) -> "Sample":
        """Find the true neighbours by comparing with every vector that is not held."""
        cosines, _ = nearest_others(queries, vectors, held, TARGET_K)
        return cls(held, queries, cosines[:, -1] if cosines.shape[1] else np.zeros(len(queries), np.float32), vectors)

    @property
    def k(self) -> int:
        """How many neighbours count."""
        return min(TARGET_K, len(self.vectors) - len(self.held))

    def recall(self, rows: np.ndarray) -> float:
        """Share of the k nearest that were found, per tied distance.

            recall@k = mean over queries of (found rows whose cosine >= the k-th true cosine - 1e-6) / k

        rows  int64, (Q, k), -1 where nothing was found. An empty sample misses nothing.

        Source: faiss contrib/evaluation.py, which likewise counts by distance, so that ties cost nothing.
        """
        if not len(self.queries) or not self.k:
            return 1.0
        cosines = np.einsum("qd,qkd->qk", self.queries, self.vectors[np.maximum(rows, 0)])
        good = (rows >= 0) & (cosines >= self.kth[:, None] - TIED)
        return float(good.sum(axis=1).mean() / self.k)


def nearest_others(queries: np.ndarray, vectors: np.ndarray, held: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows that are not held, or all: cosines, float32 (Q, k), best first, and rows, int64 (Q, k)."""
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
    """An index, the recall it reaches on a sample, and with how many comparisons a query."""

    index: Index
    recall: float
    distances: float


def tune(index: Index, sample: Sample, target: float) -> Tuned:
    """Find the least effort whose recall on the sample is at least the target, or the most there is.

    index  without the sample's images, if it is approximate.

    Recall is taken to rise with effort: doubling until it suffices, then halving the interval.
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
    """Of an index that holds all images, the sample's too: only its storage's rounding can miss."""
    if index.design.storage == "float32" or not len(sample.queries) or not sample.k:
        return 1.0
    others = np.ones(len(index), dtype=bool)
    others[sample.held] = False
    return sample.recall(index.search(sample.queries, sample.k, others)[1])
