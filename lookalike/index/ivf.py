"""Approximate search in the nearest of many lists, which hold whole vectors (ivf) or short codes (ivfpq).

Sources: Sivic, Zisserman, Video Google, ICCV 2003 (lists); Jegou, Douze, Schmid, Product quantization for nearest
neighbor search, TPAMI 2011; Ge, He, Ke, Sun, Optimized product quantization, TPAMI 2014 (the rotation before it).
"""

from functools import cached_property
from typing import Annotated

import numpy as np
from msgspec import Meta

from lookalike.base.params import Section
from lookalike.index.base import Design, Index
from lookalike.index.storage import BYTES, quantizer
from lookalike.refinement.faiss_setup import centroids, faiss

PER_LIST = 39  # FAISS's minimum of training vectors per list
ROTATION_TRAINING, ROTATION_ROUNDS = 16_384, 10  # vectors and iterations; more would take hours
SEED = 1234  # of k-means, FAISS's default
CODES = 256  # codes of a product quantiser, one byte each


class Settings(Section, frozen=True):
    """Section `index.ivf` of params.yaml."""

    lists: Annotated[int, Meta(ge=0, le=10_000_000)]
    code_bytes: Annotated[int, Meta(ge=1, le=256)]

    def lists_for(self, count: int) -> int:
        """Return `lists` (if 0, 4 sqrt(count)), or fewer if `count` vectors are too few to train that many."""
        return max(1, min(self.lists or int(4 * count**0.5), count // PER_LIST))


class Ivf(Index):
    """Lists of vectors around centroids; `effort` is nprobe, the number of lists searched."""

    @staticmethod
    def make(design: Design, dim: int) -> faiss.Index:
        """Return an untrained FAISS index."""
        metric, coarse = faiss.METRIC_INNER_PRODUCT, faiss.IndexFlatIP(dim)
        if design.kind == "ivfpq":
            inner = faiss.IndexIVFPQ(coarse, dim, design.lists, design.code_bytes, 8, metric)
        elif design.storage == "float32":
            inner = faiss.IndexIVFFlat(coarse, dim, design.lists, metric)
        else:
            inner = faiss.IndexIVFScalarQuantizer(coarse, dim, design.lists, quantizer(design.storage), metric, False)
        inner.cp.spherical = True  # for ivfpq: centroids of unit vectors are unit vectors
        inner.own_fields = True
        coarse.this.disown()
        if design.kind == "ivf":
            return inner
        rotation = faiss.OPQMatrix(dim, design.code_bytes)
        rotation.max_train_points, rotation.niter = ROTATION_TRAINING, ROTATION_ROUNDS
        index = faiss.IndexPreTransform(rotation, inner)
        index.own_fields = True
        rotation.this.disown()
        inner.this.disown()
        return index

    @staticmethod
    def predicted_bytes(design: Design, count: int, dim: int) -> int:
        """Predict the bytes of `count` vectors or codes, two row numbers for each, and the centroids."""
        code = design.code_bytes if design.kind == "ivfpq" else dim * BYTES[design.storage]
        fixed = 4 * dim * (CODES + dim) if design.kind == "ivfpq" else 0  # codebook and rotation
        return count * (code + 16) + design.lists * (dim * 4 + 8) + fixed

    def train(self, vectors: np.ndarray) -> None:
        """See Index. The lists of ivf are the same on every processor; the product quantiser of ivfpq is not."""
        if self.kind == "ivf":
            faiss.extract_index_ivf(self.raw).quantizer.add(centroids(vectors, self.design.lists, SEED))
        super().train(vectors)

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """See Index."""
        self.raw.add_with_ids(vectors, rows)

    def finish(self, rows: np.ndarray) -> None:
        """See Index: record where each row is stored, so that `vectors` can find it."""
        faiss.extract_index_ivf(self.raw).make_direct_map()

    def _note_effort(self) -> None:
        faiss.extract_index_ivf(self.raw).nprobe = self.design.effort

    def _find(self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None) -> tuple[np.ndarray, np.ndarray]:
        return self._probe(queries, k, self.design.effort, selector)

    def _compare_all(
        self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._probe(queries, k, self.design.lists, selector)

    def distances(self, queries: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, int]:
        """See Index."""
        faiss.cvar.indexIVF_stats.reset()
        _, rows = self._probe(queries, k, effort, None)
        return rows, int(faiss.cvar.indexIVF_stats.ndis) + len(queries) * self.design.lists

    def _probe(
        self, queries: np.ndarray, k: int, lists: int, selector: faiss.IDSelector | None
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = faiss.SearchParametersIVF(nprobe=max(1, min(lists, self.design.lists)), sel=selector)
        index = self.raw
        if self.kind == "ivfpq":
            index, queries = faiss.downcast_index(index.index), self._rotated(queries)
        found: tuple[np.ndarray, np.ndarray] = index.search(queries, k, params=chosen)
        return found

    def _rotated(self, queries: np.ndarray) -> np.ndarray:
        """Rotate queries as the product quantiser needs them: float32 (Q, D) -> float32 (Q, D)."""
        rotated = np.empty(queries.shape, np.float32)
        for row, query in enumerate(queries):  # in a matrix product the last bits of a row depend on the other rows
            rotated[row] = self._rotation @ query
        return rotated

    @cached_property
    def _rotation(self) -> np.ndarray:
        return np.asarray(
            faiss.vector_to_array(faiss.downcast_VectorTransform(self.raw.chain.at(0)).A).reshape(self.dim, -1)
        )
