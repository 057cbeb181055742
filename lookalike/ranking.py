"""Exact ranking of a gallery for many queries, a block of queries at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 256  # queries; a block holds BLOCK x N cosines and as many row numbers


@dataclass(frozen=True)
class Ranking:
    """The ranked gallery of some consecutive queries.

    queries  slice into the query array.
    rows     int64, (B, N): gallery rows, most similar first; equal cosines keep gallery order.
    cosines  float32, (B, N), in the same order.
    """

    queries: slice
    rows: np.ndarray
    cosines: np.ndarray


def rank(queries: np.ndarray, gallery: np.ndarray) -> Iterator[Ranking]:
    """Rank the whole gallery for each query by cosine.

    queries  float32, (Q, D), unit length.
    gallery  float32, (N, D), unit length.
    """
    for start in range(0, len(queries), BLOCK):
        block = slice(start, min(start + BLOCK, len(queries)))
        cosines = queries[block] @ gallery.T  # (B, N)
        rows = np.argsort(-cosines, axis=1, kind="stable")  # ties keep gallery order, so reruns agree
        yield Ranking(block, rows, np.take_along_axis(cosines, rows, axis=1))
