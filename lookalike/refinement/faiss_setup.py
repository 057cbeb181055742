"""FAISS, configured. Import `faiss` from here, never directly."""

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np

from lookalike.base.vectors import STEPS, on_grid

__all__ = ["centroids", "faiss", "matrix_products"]

_FROM = 20  # FAISS's default: from this many queries on, it compares by matrix products
# A search compares one query at a time: in a matrix product the last bits of its cosines depend on the other queries.
faiss.cvar.distance_compute_blas_threshold = 1 << 30


@contextmanager
def matrix_products(threads: int = 0) -> Iterator[None]:
    """Let FAISS compare by matrix products, on `threads` threads: training and all-pairs search need the speed.

    threads  0 leaves the number of threads as it is.

    Not thread-safe: FAISS's settings are global.
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
    """Compute k-means centroids, the same on every processor: float32 (N, d) on the grid -> (count, d) on the grid.

    Vectors are scaled by the grid's steps to whole numbers, and FAISS keeps the centroids whole, so sums are exact in
    any order. With centroids rounded to float32, results on different processors diverge within a few iterations.
    """
    dim = vectors.shape[1]
    kmeans = faiss.Clustering(dim, count)
    kmeans.int_centroids, kmeans.seed = True, seed
    assigned = faiss.IndexFlatL2(dim)
    kmeans.train(np.ascontiguousarray(vectors * np.float32(STEPS)), assigned)
    found = faiss.vector_to_array(kmeans.centroids).reshape(count, dim).astype(np.float64)
    found[(found == 0).all(axis=1), 0] = 1  # the mean of opposite vectors may round to zero
    return on_grid(found)
