"""Exact ranking of a whole gallery for many queries, in blocks of queries, on every core."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from lookalike.base.machine import cores
from lookalike.base.vectors import PRODUCT, product
from lookalike.refinement.refinement import Refinement

# Peak bytes per query and gallery image of a block: keys, rows, cosines, and the arrays that metrics derive from them.
CELL_BYTES = 64

Result = TypeVar("Result")
# (block of queries, their cosines, float32 (B, N), -inf for excluded rows) -> the similarities to rank by, likewise
Mix = Callable[[slice, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Ranking:
    """The gallery, ranked for a block of consecutive queries.

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
    mix: Mix | None = None,
) -> Iterator[Result]:
    """Rank the whole gallery for each query, measure each block of rankings, and yield the results in order.

    features  float32, (Q, D), embeddings of the queries.
    gallery   float32, (N, d), from `refinement.gallery`.
    exclude   int64, (Q, m): gallery rows that a query may neither find nor use, padded with -1.
    memory    limit in bytes on all blocks in progress, with the vectors gathered for expansion; but at least the 64
              queries of one matrix product are ranked at a time.
    mix       combines the cosines with other similarities; re-ranking is then not applied.
    """
    gathered = min(refinement.settings.expand, len(gallery)) * gallery.shape[1] * 12  # neighbours' vectors and copies
    query_bytes = CELL_BYTES * max(len(gallery), 1) + gathered
    workers = max(1, min(cores(), memory // (PRODUCT * query_bytes)))
    size = max(1, min(4, memory // (PRODUCT * query_bytes * workers))) * PRODUCT
    queries = refinement.project(features)

    def work(block: slice) -> Result:
        return measure(_rank(refinement, queries[block], gallery, exclude[block], block, mix))

    blocks = (slice(start, min(start + size, len(features))) for start in range(0, len(features), size))
    pending: deque[Future[Result]] = deque()
    # One BLAS thread per block: more would compete with the other blocks.
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        for block in blocks:
            pending.append(pool.submit(work, block))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _rank(
    refinement: Refinement, queries: np.ndarray, gallery: np.ndarray, exclude: np.ndarray, block: slice,
    mix: Mix | None,
) -> Ranking:  # fmt: skip
    def vectors(rows: np.ndarray) -> np.ndarray:
        return np.where(rows[..., None] < 0, np.float32(0), gallery[rows])

    def nearest(queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        cosines = _cosines(queries, gallery, exclude, exact=refinement.exact)
        count = min(count, len(gallery))
        rows = np.argpartition(-cosines, count - 1, axis=1)[:, :count]  # unordered: they are only summed
        found = np.take_along_axis(cosines, rows, axis=1)
        return found, np.where(np.isfinite(found), rows, -1)

    queries = refinement.expand(queries, nearest, vectors)
    cosines = _cosines(queries, gallery, exclude, exact=refinement.exact)
    if mix:
        cosines = mix(block, cosines)
    rows = _order(cosines)
    cosines = np.take_along_axis(cosines, rows, axis=1)
    if mix:
        return Ranking(block, rows, cosines)
    first = slice(0, refinement.settings.rerank)
    shortlist = np.where(np.isfinite(cosines[:, first]), rows[:, first], -1)
    refinement.reorder(queries, cosines[:, first], shortlist, vectors)
    rows[:, first] = np.where(shortlist < 0, rows[:, first], shortlist)
    return Ranking(block, rows, cosines)


def _cosines(queries: np.ndarray, gallery: np.ndarray, exclude: np.ndarray, *, exact: bool) -> np.ndarray:
    cosines = product(queries, gallery.T, exact=exact)  # (B, N)
    query, column = np.nonzero(exclude >= 0)
    cosines[query, exclude[query, column]] = -np.inf
    return cosines


def _order(cosines: np.ndarray) -> np.ndarray:
    """Sort rows by falling cosine, ties by row. One sort of 64-bit keys is several times as fast as a stable argsort.

    The bits of a float32, with the sign bit flipped (all bits if negative), sort like the number; their complement
    sorts in falling order. It is the upper half of a key whose lower half is the row.
    """
    bits = (cosines + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    falling = np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31)))
    keys = falling.astype(np.uint64) << np.uint64(32) | np.arange(cosines.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    return np.asarray(keys & np.uint64(0xFFFFFFFF), dtype=np.int64)
