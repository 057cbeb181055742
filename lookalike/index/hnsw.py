"""Approximate search over a hierarchical navigable small-world graph.

Source: Malkov, Yashunin, Efficient and robust approximate nearest neighbor search using HNSW graphs, TPAMI 2018.
"""

from functools import lru_cache
from typing import Annotated

import numpy as np
from msgspec import Meta

from lookalike.base.params import Section
from lookalike.index.base import TARGET_K, Design, Index
from lookalike.index.flat import compare_all
from lookalike.index.storage import BYTES, quantizer
from lookalike.refinement.faiss_setup import faiss


class Settings(Section, frozen=True):
    """Section `index.hnsw` of params.yaml."""

    neighbors: Annotated[int, Meta(ge=2, le=256)]
    ef_construction: Annotated[int, Meta(ge=1, le=10_000)]


class Hnsw(Index):
    """Graph whose nodes are the vectors; `effort` is efSearch, the number of candidates kept during a search."""

    def __init__(self, design: Design, index: faiss.Index) -> None:
        """See Index."""
        super().__init__(design, index)
        self._added: list[np.ndarray] = []  # rows in the order of nodes, while the index is built

    @staticmethod
    def make(design: Design, dim: int) -> faiss.Index:
        """Return an empty FAISS index; int8 still needs training."""
        metric = faiss.METRIC_INNER_PRODUCT
        if design.storage == "float32":
            index = faiss.IndexHNSWFlat(dim, design.neighbors, metric)
        else:
            index = faiss.IndexHNSWSQ(dim, quantizer(design.storage), design.neighbors, metric)
        index.hnsw.efConstruction = design.ef_construction
        return index

    @staticmethod
    def predicted_bytes(design: Design, count: int, dim: int) -> int:
        """Predict the bytes of `count` vectors, their links, and the level and link offset of each node."""
        levels = 2 + 1 / (design.neighbors - 1)  # 2 M links at the bottom, M per upper level, which few nodes reach
        return int(count * (dim * BYTES[design.storage] + 4 * design.neighbors * levels + 12))

    def _note_effort(self) -> None:
        self.raw.hnsw.efSearch = self.design.effort

    def _find(self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None) -> tuple[np.ndarray, np.ndarray]:
        effort = self.design.effort * max(1, -(-k // TARGET_K))  # tuned for k = 10; grows in proportion to k
        chosen = faiss.SearchParametersHNSW(efSearch=effort, sel=selector) if selector else _unfiltered(effort)
        found: tuple[np.ndarray, np.ndarray] = self.raw.search(queries, k, params=chosen)
        return found

    def _compare_all(
        self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return compare_all(faiss.downcast_index(self.raw.storage), queries, k, selector)

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """See Index."""
        super().add(vectors, rows)
        self._added.append(rows)

    def finish(self, rows: np.ndarray) -> None:
        """See Index."""
        if (rows[:-1] > rows[1:]).any():
            self.raw.permute_entries(np.argsort(rows))
        self._added.clear()

    def distances(self, queries: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, int]:
        """See Index."""
        faiss.cvar.hnsw_stats.reset()
        _, places = self.raw.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=effort))
        rows = np.where(places < 0, -1, np.concatenate(self._added)[places])
        return rows, int(faiss.cvar.hnsw_stats.ndis)


@lru_cache
def _unfiltered(effort: int) -> faiss.SearchParametersHNSW:
    """Make the search parameters once per effort: making them takes half as long as a search."""
    return faiss.SearchParametersHNSW(efSearch=effort)
