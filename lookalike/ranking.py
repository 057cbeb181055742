"""Exact ranking of a whole gallery for many queries, a block of queries at a time, on every core."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from lookalike.refine import Refinement, rerank

CELL_BYTES = (
    48  # held for each query and gallery image of a block at the peak: keys, rows, cosines, what metrics derive
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranking:
    """The ranked gallery of some consecutive queries.

    queries  slice into the query array.
    rows     int64, (B, N): gallery rows, best first; equal cosines keep gallery order; excluded rows come last.
    cosines  float32, (B, N), in the same order; -inf for excluded rows.
    """

    queries: slice
    rows: np.ndarray
    cosines: np.ndarray


def map_rankings(
    measure: Callable[[Ranking], Result],
    refinement: Refinement,
    features: np.ndarray,
    gallery: np.ndarray,
    exclude: np.ndarray,
    memory: int,
) -> Iterator[Result]:
    """Rank the whole gallery for each query, measure each block of rankings, and yield the results in order.

    features  float32, (Q, D), of the queries, as the network gives them.
    gallery   float32, (N, d), from `refinement.gallery`.
    exclude   int64, (Q, m): gallery rows that a query must neither find nor use, padded with -1.
    memory    bytes that the blocks under way may take together; at least one query a core is.
    """
    cores = os.cpu_count() or 1
    size = max(1, min(256, memory // (CELL_BYTES * max(len(gallery), 1) * cores)))

    def work(block: slice) -> Result:
        return measure(_rank(refinement, features[block], gallery, exclude[block], block))

    blocks = (slice(start, min(start + size, len(features))) for start in range(0, len(features), size))
    pending: deque[Future[Result]] = deque()
    # One thread of BLAS each: more would compete with the other blocks.
    with threadpool_limits(1), ThreadPoolExecutor(cores) as pool:
        for block in blocks:
            pending.append(pool.submit(work, block))
            if len(pending) > cores:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _rank(
    refinement: Refinement, features: np.ndarray, gallery: np.ndarray, exclude: np.ndarray, block: slice
) -> Ranking:
    queries = refinement.project(features)
    count = min(refinement.settings.expand, len(gallery))
    if count:
        cosines = _cosines(queries, gallery, exclude)
        rows = np.argpartition(-cosines, count - 1, axis=1)[:, :count]  # (B, n): a sum needs no order
        nearest = np.take_along_axis(cosines, rows, axis=1)
        left = np.isfinite(nearest)  # fewer than n where rows are excluded
        queries = refinement.expand(queries, np.where(left, nearest, 0), gallery[rows] * left[:, :, None])
    cosines = _cosines(queries, gallery, exclude)
    rows = _order(cosines)
    shortlist = min(refinement.settings.rerank, len(gallery))
    if shortlist:
        for query, own_rows, own_exclude in zip(queries, rows, exclude, strict=True):
            first = own_rows[: min(shortlist, len(gallery) - int((own_exclude >= 0).sum()))]
            first[:] = first[rerank(query, gallery[first])]
    return Ranking(block, rows, np.take_along_axis(cosines, rows, axis=1))


def _cosines(queries: np.ndarray, gallery: np.ndarray, exclude: np.ndarray) -> np.ndarray:
    cosines: np.ndarray = queries @ gallery.T  # (B, N)
    query, column = np.nonzero(exclude >= 0)
    cosines[query, exclude[query, column]] = -np.inf
    return cosines


def _order(cosines: np.ndarray) -> np.ndarray:
    """Row numbers by falling cosine, ties by row: one sort of 64-bit keys, several times as fast as a stable argsort.

    A float32's bits, its sign bit flipped (all bits if negative), sort like the number; complemented, in falling order.
    They become the upper half of a key whose lower half is the row.
    """
    bits = (cosines + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    falling = np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31)))
    keys = falling.astype(np.uint64) << np.uint64(32) | np.arange(cosines.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    return np.asarray(keys & np.uint64(0xFFFFFFFF), dtype=np.int64)
