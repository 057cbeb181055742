"""The interface of every kind of index: unit vectors, searched by cosine."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, to_builtins
from msgspec.structs import replace

from lookalike.base.errors import LookalikeError
from lookalike.base.params import Section
from lookalike.refinement.faiss_setup import faiss

Kind = Literal["flat", "hnsw", "ivf", "ivfpq"]
Storage = Literal["float32", "float16", "int8"]
TARGET_K = 10  # the k of index.target_recall
# Below this share of allowed rows, all allowed rows are compared exactly: a graph search would lose its way among them.
EXACT_SHARE = 0.3
EXACT_K = 0.05  # above this k, as a share of the rows, all rows are compared exactly too


class Design(Section, frozen=True):
    """All choices that decide how an index is built and searched. Stored with the index."""

    kind: Kind
    storage: Storage  # of the vectors; ivfpq stores only their codes
    neighbors: Annotated[int, Meta(ge=0, le=256)] = 0  # hnsw: M, links per node; twice as many at the lowest level
    ef_construction: Annotated[int, Meta(ge=0, le=10_000)] = 0  # hnsw
    lists: Annotated[int, Meta(ge=0)] = 0  # ivf, ivfpq
    code_bytes: Annotated[int, Meta(ge=0)] = 0  # ivfpq: per vector
    effort: Annotated[int, Meta(ge=0)] = 0  # hnsw: efSearch, ivf: nprobe; what tuning sets

    def stated(self) -> dict[str, Any]:
        """Return kind, storage, and the fields that differ from their default."""
        return {key: value for key, value in to_builtins(self).items() if value or key in ("kind", "storage")}


class Index:
    """Unit vectors, searched by cosine. A subclass is a kind: it makes and searches one type of FAISS index."""

    def __init__(self, design: Design, index: faiss.Index) -> None:
        """Wrap a FAISS index whose metric is the inner product."""
        self.design = design
        self.raw = index  # the FAISS index

    def __len__(self) -> int:
        return int(self.raw.ntotal)

    @property
    def kind(self) -> Kind:
        """flat, hnsw, ivf or ivfpq."""
        return self.design.kind

    @property
    def dim(self) -> int:
        """D, the length of a stored vector."""
        return int(self.raw.d)

    @property
    def nbytes(self) -> int:
        """Bytes of the index as it is stored and held in memory."""
        return int(faiss.serialize_index(self.raw).nbytes)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the k rows most similar to each query, best first; equal cosines keep the order of rows.

        queries  float32, (Q, D), unit length.
        k        1 to N.
        allowed  bool, (N,): the rows that may be found; None for all.

        Returns cosines, float32 (Q, k) in [-1, 1], computed from the stored vectors, and rows, int64 (Q, k). If fewer
        than k rows are allowed, the last rows are -1 and their cosines -inf; otherwise no row is -1. Raises
        LookalikeError for a k out of range, another D or N, or queries that are not finite.
        """
        size = len(self)
        check_queries(queries, k, size, self.dim)
        if allowed is None:
            return in_order(*self._search(queries, k, size, None), k)
        if allowed.dtype != bool or allowed.shape != (size,):
            raise LookalikeError(
                f"the filter is {allowed.dtype} {allowed.shape}, but the index holds {size} images; give a bool for "
                "each"
            )
        count = int(np.count_nonzero(allowed))
        if not count:
            return _nothing(len(queries), k)
        bits = np.packbits(allowed, bitorder="little")  # must outlive the selector, which points to it
        selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        return in_order(*self._search(queries, min(k, count), count, selector), k)

    def _search(
        self, queries: np.ndarray, k: int, count: int, selector: faiss.IDSelector | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search among the `count` selected rows; `k` is at most `count`."""
        size = len(self)
        if count < EXACT_SHARE * size or k > EXACT_K * size:
            return self._compare_all(queries, k, selector)
        cosines, rows = self._find(queries, k, selector)
        if rows.min(initial=0) < 0:  # a graph may be disconnected
            missed = np.flatnonzero((rows < 0).any(axis=1))
            cosines[missed], rows[missed] = self._compare_all(queries[missed], k, selector)
        return cosines, rows

    def distances(self, queries: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, int]:
        """Search for tuning. Returns rows, int64 (Q, k), -1 where none was found, and the count of comparisons."""
        raise NotImplementedError

    def train(self, vectors: np.ndarray) -> None:
        """Train the index on a sample, float32 (n, D), before any vector is added."""
        self.raw.train(vectors)

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Add vectors, float32 (n, D), of the given rows; `finish` puts all vectors in the order of rows."""
        self.raw.add(vectors)

    def finish(self, rows: np.ndarray) -> None:
        """Reorder after the last `add`, so that vector i is of row i. `rows`, int64 (N,): the order of adding."""

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the stored vectors of rows: int64 (...) -> float32 (..., D); zeros for row -1."""
        found = self.raw.reconstruct_batch(np.maximum(rows, 0).ravel()).reshape(*rows.shape, -1)
        found[rows < 0] = 0
        return np.asarray(found)

    def save(self, path: Path) -> None:
        """Write the FAISS file. It contains the effort, for readers that use FAISS without this library."""
        self._note_effort()
        try:
            with path.open("wb") as file:  # FAISS's own writer misses an error on close, as when the disk is full
                faiss.write_index(self.raw, faiss.PyCallbackIOWriter(file.write))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise OSError(f"{path} cannot be written ({reason}); make room, and run again") from None

    def _note_effort(self) -> None:
        """Set the effort in the FAISS index."""

    def tuned(self, effort: int) -> "Index":
        """Return the same index, searched with another effort."""
        return type(self)(replace(self.design, effort=effort), self.raw)

    def _find(self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None) -> tuple[np.ndarray, np.ndarray]:
        """Search in the way of this kind; rows are -1 where none was found."""
        raise NotImplementedError

    def _compare_all(
        self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare the queries with every selected vector."""
        raise NotImplementedError


def check_queries(queries: np.ndarray, k: int, count: int, dim: int) -> None:
    """Raise LookalikeError for queries or a k that an index of `count` vectors of `dim` dimensions cannot answer."""
    check_k(k, count)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise LookalikeError(
            f"queries are {queries.shape}, but the index holds vectors of {dim} dimensions; they come from another "
            "network or refinement"
        )
    if not np.isfinite(queries).all():
        raise LookalikeError("a query contains NaN or infinity, so it has no cosine; embed the image again")


def check_k(k: int, count: int) -> None:
    """Raise LookalikeError unless k is between 1 and `count`, the number of images."""
    if not count:
        raise LookalikeError("the index is empty, so nothing can be found in it")
    if not 1 <= k <= count:
        raise LookalikeError(f"k is {k}, but the index holds {count} images; choose 1 to {count}")


def in_order(cosines: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort hits, (Q, n), by falling cosine, then by row; pad to (Q, k); clip cosines to [-1, 1]."""
    cosines = np.minimum(np.maximum(cosines, -1), 1)  # np.clip takes longer than the rest of this function
    if rows.min(initial=0) < 0:
        cosines[rows < 0] = -np.inf
    if (cosines[:, :-1] <= cosines[:, 1:]).any():  # mostly false: hits come sorted and without ties
        order = np.lexsort((rows, -cosines), axis=1)
        cosines, rows = np.take_along_axis(cosines, order, axis=1), np.take_along_axis(rows, order, axis=1)
    if rows.shape[1] < k:
        more = ((0, 0), (0, k - rows.shape[1]))
        cosines, rows = np.pad(cosines, more, constant_values=-np.inf), np.pad(rows, more, constant_values=-1)
    return cosines, rows


def _nothing(queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)
