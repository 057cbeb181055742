"""A hundred vectors, a plan of each kind, and an index that tells how FAISS is asked."""

import re
from typing import Any

import numpy as np
import pytest
from msgspec import convert, to_builtins

from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.index import build
from lookalike.index.build import Design, Index
from lookalike.index.hnsw import Settings as HnswSettings
from lookalike.index.ivf import Settings as IvfSettings
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import OFF

IP = faiss.METRIC_INNER_PRODUCT
GRAPH = HnswSettings(neighbors=5, ef_construction=30)
LISTS = IvfSettings(lists=0, code_bytes=4)


def vectors_of(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return unit_length(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


VECTORS, QUERIES = vectors_of(120), vectors_of(6, seed=1)
COSINES = QUERIES @ VECTORS.T  # (6, 120)
PLANS = {
    "flat": Design(kind="flat", storage="float32"),
    "hnsw": Design(kind="hnsw", storage="float32", neighbors=16, ef_construction=60, effort=120),
    "ivf": Design(kind="ivf", storage="float32", lists=3, effort=3),
}


def exactly(message: str) -> Any:
    return pytest.raises(LookalikeError, match=f"^{re.escape(message)}$")


class Raw:
    """In the place of a FAISS index: notes with which parameters it is searched."""

    d, ntotal = 8, 100

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(params)
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)


class Told(Index):
    """Notes by which way it is asked; the walk finds nothing for some queries."""

    def __init__(self, lost: tuple[int, ...] = ()) -> None:
        super().__init__(PLANS["hnsw"], Raw())
        self.lost, self.told = lost, []

    def _find(self, queries: np.ndarray, k: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        self.told.append(("find", len(queries), k, selector is not None))
        rows = np.tile(np.arange(k), (len(queries), 1))
        rows[list(self.lost), -1] = -1
        return np.full((len(queries), k), 0.5, np.float32), rows

    def _compare_all(self, queries: np.ndarray, k: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        self.told.append(("all", len(queries), k, selector is not None))
        return np.full((len(queries), k), 0.25, np.float32), np.tile(np.arange(k), (len(queries), 1))


def settings(**changes: Any) -> build.Settings:
    from tests.helpers.small_collection import NO_TAGS

    content = {
        "kind": "auto", "storage": "auto", "target_recall": 0.9, "memory": 0, "threads": 3, "seed": 7,
        "hnsw": to_builtins(GRAPH), "ivf": to_builtins(LISTS), "tags": NO_TAGS, "refine": to_builtins(OFF),
    }  # fmt: skip
    return convert(content | changes, build.Settings)
