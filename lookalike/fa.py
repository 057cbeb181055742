"""The one place that sets FAISS up: everything here takes `faiss` from this module."""

from collections.abc import Iterator
from contextlib import contextmanager

import faiss

__all__ = ["faiss", "matrix_products"]

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
