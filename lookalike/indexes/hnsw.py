"""Approximate search over a hierarchical navigable small-world graph.

Source: Malkov, Yashunin, Efficient and robust approximate nearest neighbor search using HNSW graphs, TPAMI 2018.
"""

from typing import Annotated

import faiss
import numpy as np
from pydantic import Field

from lookalike.params import Section


class Settings(Section):
    """Section `index.hnsw` of params.yaml."""

    neighbors: Annotated[int, Field(ge=2, le=256)]
    ef_construction: Annotated[int, Field(ge=1, le=10_000)]
    ef_search: Annotated[int, Field(ge=1, le=10_000)]


def build(vectors: np.ndarray, settings: Settings) -> faiss.Index:
    """Link float32 (N, D), unit length, into a graph; the vectors are stored beside it."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings.neighbors, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings.ef_construction
    index.hnsw.efSearch = settings.ef_search
    index.add(vectors)
    return index
