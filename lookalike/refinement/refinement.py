"""Refinement of embeddings, so that they compare better, without labels: fitted on a gallery, applied to its queries.

The parts, in this order, each turned on or off by one setting:

    both        signed power of each activation   Jegou, Chum, Negative evidences and co-occurences in image retrieval,
                                                  ECCV 2012; Arandjelovic, Zisserman, CVPR 2012 (RootSIFT)
    both        PCA, whitening in full or part    Jegou, Chum, ibid.
    gallery     augmentation                      Turcot, Lowe, Better matching with fewer features, ICCVW 2009;
                                                  Arandjelovic, Zisserman, Three things everyone should know, CVPR 2012
    query       expansion (alpha-QE)              Radenovic, Tolias, Chum, Fine-tuning CNN image retrieval with no human
                                                  annotation, TPAMI 2019, section 3.3
    shortlist   k-reciprocal re-ranking           Zhong, Zheng, Cao, Li, Re-ranking person re-identification with
                                                  k-reciprocal encoding, CVPR 2017

Vectors are scaled to length 1 after each of the first four. With PCA they are rounded to a grid on which inner products
are exact, so that the same features give the same index, hits and figures on every processor (docs/refinement.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from lookalike.artifacts.arrays import read_array
from lookalike.base.errors import LookalikeError
from lookalike.base.params import Section
from lookalike.base.vectors import directions, on_grid, unit_length
from lookalike.refinement.faiss_setup import centroids, faiss, matrix_products
from lookalike.refinement.reranking import rerank

BLOCK = 4096  # rows held in float64 at a time
# Grid steps per unit, to which principal axes are rounded. Solvers on different processors differ by 3e-14 per element,
# so about one element in a hundred million rounds differently.
AXIS_STEPS = 1 << 16
EXACT_NEIGHBOURS = 100_000  # up to this many images, augmentation compares all pairs
SPARE = 8  # additional neighbours to fetch, because the last bits of cosines can swap the order
JOIN_WEIGHT = 0.2  # makes joined images as easy to find as others (benchmarks/changes.py)
NEIGHBOUR_LISTS = 16  # lists searched for an image's neighbours, of 4 sqrt(images) lists
NEIGHBOUR_BYTES = 1 << 27  # limit on the memory of the neighbours of one block of rows


# (queries (Q, d), k) -> cosines (Q, k) and rows (Q, k) of the k nearest in the gallery, rows -1 where none is left
Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
# rows (...) -> their vectors (..., d), zeros for row -1
Vectors = Callable[[np.ndarray], np.ndarray]


class Settings(Section, frozen=True):
    """Section `index.refine` of params.yaml."""

    power: Annotated[float, Meta(gt=0, le=1)]
    pca: Annotated[int, Meta(ge=0)]
    whiten: Annotated[float, Meta(ge=0, le=1)]
    augment: Annotated[int, Meta(ge=0)]
    expand: Annotated[int, Meta(ge=0)]
    alpha: Annotated[float, Meta(ge=0, le=10)]
    rerank: Annotated[int, Meta(ge=0)]


OFF = Settings(power=1.0, pca=0, whiten=0.0, augment=0, expand=0, alpha=1.0, rerank=0)  # raw cosine


class Refinement:
    """A refinement: the projection fitted on a gallery, and the settings it was fitted with."""

    def __init__(self, settings: Settings, mean: np.ndarray, components: np.ndarray) -> None:
        """Keep the projection: mean (D,) and components (D, d), float32; both empty without PCA."""
        self.settings, self.mean, self.components = settings, mean, components
        self._components = components.astype(np.float64)  # 60 us a query; float32: 20 us, rounded differently

    @property
    def exact(self) -> bool:
        """Whether refined vectors are on the grid, where inner products are exact: see `vectors.on_grid`."""
        return self.settings.pca > 0

    @classmethod
    def fit(cls, features: np.ndarray, settings: Settings) -> "Refinement":
        """Fit the projection on a gallery's features, float32 (N, D), which may be memory-mapped.

        PCA diagonalises the covariance C = V diag(l) V'; the projection onto the d largest is (x - mean) V l^(-w/2),
        where w is the setting `whiten`: 0 keeps the variances, 1 equalises them, values between do so in part.

        Raises LookalikeError if `pca` exceeds the dimensions or the images less one, or for whitening without PCA.
        """
        if not settings.pca:
            if settings.whiten:
                raise LookalikeError("index.refine.whiten needs index.refine.pca; set pca above 0 or whiten to 0")
            return cls(settings, np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
        count, dim = features.shape
        if settings.pca > min(count - 1, dim):
            raise LookalikeError(
                f"index.refine.pca is {settings.pca}, but the gallery has {count} images of {dim} dimensions; "
                f"choose at most {max(min(count - 1, dim), 0)} (one less than the images), or 0 for none, with whiten 0"
            )
        from threadpoolctl import threadpool_limits  # a search does not need it

        with threadpool_limits(1):  # on several threads the order of sums, so the last bits, depends on the cores
            mean, variances, vectors = _principal(features, settings)
        if variances[0] < 1e-12:
            raise LookalikeError(
                f"all {count} images of the gallery have the same embedding, so PCA finds no directions; "
                "set index.refine.pca and index.refine.whiten to 0, or check the images and the network"
            )
        floor = variances[0] * 1e-10  # with few distinct images some directions have no variance
        scales = (np.maximum(variances, floor) ** (-settings.whiten / 2)).astype(np.float32)
        axes = (np.rint(vectors * AXIS_STEPS) + 0.0) / AXIS_STEPS  # + 0 turns -0 into 0
        return cls(settings, mean.astype(np.float32), (axes * scales).astype(np.float32))

    def project(self, features: np.ndarray) -> np.ndarray:
        """Apply power, PCA and whitening, to gallery or query: float32 (N, D) -> float32 (N, d), unit length."""
        width = self.settings.pca or features.shape[1]
        result = np.empty((len(features), width), np.float32)
        for start in range(0, len(features), BLOCK):
            block = _powered(features[start : start + BLOCK], self.settings.power)
            projected = (block - self.mean) @ self._components if self.settings.pca else block
            result[start : start + BLOCK] = self._finished(projected)
        return result

    def _finished(self, vectors: np.ndarray) -> np.ndarray:
        """Scale vectors, float64 (N, d), to unit length, and with PCA round them to the grid: float32 (N, d)."""
        return on_grid(vectors) if self.exact else unit_length(vectors)

    def gallery(self, features: np.ndarray) -> np.ndarray:
        """Refine a gallery: project its features, then replace each vector by the weighted mean of its neighbourhood.

            x_i <- sum over j among the n nearest of x_i, itself included, of max(cos(x_i, x_j), 0)^alpha x_j

        float32 (N, D) -> float32 (N, d), unit length. In addition to both it holds the N d projected floats, and 128 MB
        of neighbours. Above 100,000 images, neighbours are searched in the nearest lists only: all pairs would take
        hours.
        """
        vectors = self.project(features)
        count = min(self.settings.augment, len(vectors))
        if count < 2:  # an image is its own nearest neighbour
            return vectors
        augmented = np.empty_like(vectors)
        step = max(1, NEIGHBOUR_BYTES // (count * vectors.shape[1] * 4))
        with matrix_products():
            nearest = _among(vectors, exact=self.exact)
            for start in range(0, len(vectors), step):
                cosines, rows = nearest(vectors[start : start + step], count)  # (B, n)
                sums = self._weighted_sum(np.where(rows < 0, 0, cosines), vectors[rows])
                augmented[start : start + step] = self._finished(sums)
        return augmented

    def join(self, vectors: np.ndarray, nearest: Nearest, stored: Vectors) -> np.ndarray:
        """Refine vectors that join a gallery later; the gallery's own vectors stay as they are.

            x <- x + w sum over the n - 1 nearest gallery vectors g of max(cos(x, g), 0)^alpha g

        w is JOIN_WEIGHT, not 1: the gallery's vectors are means already, so at weight 1 joined images rank too high.

        vectors  float32, (B, d), projected.
        nearest  finds gallery vectors; `stored` returns the vectors of the rows found.

        Returns float32, (B, d), unit length.
        """
        count = self.settings.augment - 1  # without itself, which has weight 1
        if count < 1:
            return vectors
        cosines, rows = nearest(vectors, count)
        neighbours = self._weighted_sum(np.where(rows < 0, 0, cosines), stored(rows))
        return self._finished(vectors + JOIN_WEIGHT * neighbours)

    def expand(self, queries: np.ndarray, nearest: Nearest, vectors: Vectors) -> np.ndarray:
        """Apply alpha query expansion: add the n nearest gallery vectors g to each query. No change if it is off.

            q <- q + sum over g of max(cos(q, g), 0)^alpha g

        queries  float32, (Q, d), projected.
        nearest  finds gallery vectors; `vectors` returns the vectors of the rows found.

        Returns float32, (Q, d), unit length.
        """
        if not self.settings.expand:
            return queries
        cosines, rows = nearest(queries, self.settings.expand)
        return self._finished(queries + self._weighted_sum(np.where(rows < 0, 0, cosines), vectors(rows)))

    def reorder(self, queries: np.ndarray, cosines: np.ndarray, rows: np.ndarray, vectors: Vectors) -> None:
        """Re-rank, in place, the first `rerank` of each query's hits: cosines (Q, k) and rows (Q, k), -1 at the end."""
        if not self.settings.rerank:
            return
        for query, own_cosines, own_rows in zip(queries, cosines, rows, strict=True):
            count = min(self.settings.rerank, int((own_rows >= 0).sum()))
            order = rerank(query, vectors(own_rows[:count]))
            own_cosines[:count], own_rows[:count] = own_cosines[:count][order], own_rows[:count][order]

    def _weighted_sum(self, cosines: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Sum float32 vectors (B, n, d) in float64: on the grid, with alpha 1, the sum is exact."""
        weights = np.maximum(cosines, 0).astype(np.float64) ** self.settings.alpha  # (B, n)
        return np.asarray((weights[:, np.newaxis] @ vectors.astype(np.float64))[:, 0])  # (B, d)

    @classmethod
    def load(cls, folder: Path, settings: Settings) -> "Refinement":
        """Read the projection that `save` wrote."""
        try:
            mean, components = (read_array(folder / name) for name in ("mean.npy", "components.npy"))
        except (OSError, ValueError) as error:
            raise LookalikeError(
                f"{folder}: the refinement cannot be read ({error}); make it anew: dvc repro --force index (or fetch "
                "it: dvc pull)"
            ) from None
        width = (settings.pca,) if settings.pca else (0,)
        fits = components.shape[:1] == mean.shape and components.shape[1:] == width
        if not fits or mean.dtype != np.float32 or components.dtype != np.float32:
            raise LookalikeError(f"{folder}: the projection is not the one that index.json describes; make both anew: "
                                 "dvc repro --force index")  # fmt: skip
        return cls(settings, mean, components)

    def save(self, folder: Path) -> None:
        """Write the projection beside an index, whose description holds the settings."""
        np.save(folder / "mean.npy", self.mean, allow_pickle=False)
        np.save(folder / "components.npy", self.components, allow_pickle=False)


def _principal(features: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute PCA: the mean (D,), the largest variances (d,) and their directions (D, d), all float64."""
    import scipy.linalg  # a search does not need it

    count, dim = features.shape
    total, outer = np.zeros(dim), np.zeros((dim, dim))
    for start in range(0, count, BLOCK):
        block = _powered(features[start : start + BLOCK], settings.power)
        total += block.sum(axis=0)
        outer += block.T @ block
    mean = total / count
    covariance = outer / count - np.outer(mean, mean)
    variances, vectors = scipy.linalg.eigh(covariance, subset_by_index=[dim - settings.pca, dim - 1])
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[np.newaxis], axis=0)  # (1, d)
    vectors = np.copysign(1, largest) * vectors  # the sign of an axis depends on the solver
    return mean, variances[::-1], vectors[:, ::-1]  # scipy sorts them ascending


def _among(vectors: np.ndarray, *, exact: bool) -> Nearest:
    """Return a search for nearest vectors among float32 (N, d): exact, or, for many, in lists around centroids.

    exact  whether the vectors are on the grid. If not, the last bits of cosines depend on the processor, so cosines are
           computed again in float64.
    """
    count, dim = vectors.shape
    if count <= EXACT_NEIGHBOURS:

        def nearest(queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
            found = faiss.knn(
                queries, vectors, min(n if exact else n + SPARE, count), metric=faiss.METRIC_INNER_PRODUCT
            )
            return found if exact else _recompared(queries, vectors, found[1], n)

        return nearest
    lists = int(4 * count**0.5)
    coarse = faiss.IndexFlatIP(dim)
    coarse.add(centroids(vectors[:: max(1, count // (64 * lists))], lists, seed=0))
    index = faiss.IndexIVFFlat(coarse, dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = NEIGHBOUR_LISTS
    for start in range(0, count, BLOCK):
        index.add(vectors[start : start + BLOCK])
    return lambda queries, n: index.search(queries, n)


def _recompared(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort candidates, rows (B, m), by cosines summed in float64. Returns the best n: cosines and rows, (B, n)."""
    cosines = np.empty(rows.shape)
    for query, own, own_rows in zip(queries, cosines, rows, strict=True):
        own[:] = vectors[own_rows].astype(np.float64) @ query.astype(np.float64)
    cosines = cosines.astype(np.float32)
    order = np.lexsort((rows, -cosines), axis=1)[:, :n]
    return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _powered(features: np.ndarray, power: float) -> np.ndarray:
    """Apply power normalisation, sign(x) |x|^power: float32 (N, D) -> float64 (N, D). Unit length before and after."""
    vectors = directions(features)
    if power == 1:
        return vectors
    magnitudes = np.abs(vectors)
    magnitudes = np.sqrt(magnitudes) if power == 0.5 else magnitudes**power  # np.sqrt is far faster
    return directions(np.copysign(magnitudes, vectors))
