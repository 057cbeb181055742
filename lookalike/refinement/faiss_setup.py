"""The one place that sets FAISS up: everything here takes `faiss` from this module."""

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np

from lookalike.base.vectors import STEPS, on_grid

__all__ = ["centroids", "faiss", "matrix_products"]

_FROM = 20  # FAISS's own number of queries from which it compares by matrix products
# A search compares one query at a time: in a product its cosines would depend, in their last bits, on its company.
faiss.cvar.distance_compute_blas_threshold = 1 << 30


@contextmanager
def matrix_products(threads: int = 0) -> Iterator[None]:
    """Let FAISS compare by matrix products, which training and all-with-all need to be quick, on so many threads.

    threads  0 to leave their number as it is.

    Not for two threads of a process at a time: FAISS's settings are global.
    """
    before = faiss.omp_get_max_threads()
    faiss.cvar.distance_compute_blas_threshold = _FROM
    if threads:
        faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
        faiss.cvar.distance_compute_blas_threshold = 1 << 30


def centroids(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Find the centroids of k-means, the same on every processor: float32 (N, d) on the grid -> (count, d) on it.

    Scaled by the grid's steps, vectors and centroids are whole numbers, which FAISS is told to keep so: their sums are
    exact in whatever order. Rounded to float32 instead, k-means drifts apart within a few rounds.
    """
    dim = vectors.shape[1]
    kmeans = faiss.Clustering(dim, count)
    kmeans.int_centroids, kmeans.seed = True, seed
    assigned = faiss.IndexFlatL2(dim)
    kmeans.train(np.ascontiguousarray(vectors * np.float32(STEPS)), assigned)
    found = faiss.vector_to_array(kmeans.centroids).reshape(count, dim).astype(np.float64)
    found[(found == 0).all(axis=1), 0] = 1  # the mean of opposite vectors may round to nothing
    return on_grid(found)
