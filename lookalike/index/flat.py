"""Exact search: every stored vector is compared with the query. Only the storage rounds."""

import numpy as np

from lookalike.index.base import Design, Index
from lookalike.index.storage import BYTES, quantizer
from lookalike.refinement.faiss_setup import faiss

# From 10,000 rows on, with fewer queries than threads and no selector, threads share a query, which rounds differently.
SHARED, EVERYTHING = 10_000, faiss.SearchParameters(sel=faiss.IDSelectorAll())


class Flat(Index):
    """Array of N vectors, compared one by one."""

    @staticmethod
    def make(design: Design, dim: int) -> faiss.Index:
        """Return an empty FAISS index; int8 still needs training."""
        if design.storage == "float32":
            return faiss.IndexFlatIP(dim)
        return faiss.IndexScalarQuantizer(dim, quantizer(design.storage), faiss.METRIC_INNER_PRODUCT)

    @staticmethod
    def predicted_bytes(design: Design, count: int, dim: int) -> int:
        """Predict the bytes of `count` vectors."""
        return count * dim * BYTES[design.storage]

    def _find(self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None) -> tuple[np.ndarray, np.ndarray]:
        return self._compare_all(queries, k, selector)

    def _compare_all(
        self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return compare_all(self.raw, queries, k, selector)


def compare_all(
    index: faiss.Index, queries: np.ndarray, k: int, selector: faiss.IDSelector | None
) -> tuple[np.ndarray, np.ndarray]:
    """Search a flat FAISS index exhaustively. Returns cosines (Q, k) and rows (Q, k)."""
    chosen = faiss.SearchParameters(sel=selector) if selector else EVERYTHING if index.ntotal >= SHARED else None
    found: tuple[np.ndarray, np.ndarray] = index.search(queries, k, params=chosen)
    return found
