"""Vectors that can be compared by cosine."""

import numpy as np

from lookalike.base.errors import LookalikeError

PRODUCT = 64  # rows multiplied at a time
COLUMNS = 8192  # columns held in float64 at a time
STEPS = 1 << 12  # grid steps in a length of 1
SHORTER = 1 - 2.0**-11  # of a vector on the grid: room for what rounding adds, so that no length exceeds 1


def without_direction(vectors: np.ndarray) -> np.ndarray:
    """Rows of (N, D) that are zero or not finite, and so have no cosine with anything."""
    return _without_direction(np.linalg.norm(vectors, axis=1))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1, so that an inner product is a cosine.

    vectors  float32 or float64, (N, D). Lengths are summed in float64, so that no processor's order of adding shows.

    Returns float32, (N, D). Raises LookalikeError for a row that is zero or not finite: it has no direction.
    """
    return directions(vectors).astype(np.float32)


def directions(vectors: np.ndarray) -> np.ndarray:
    """As `unit_length`, in float64."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    bad = _without_direction(lengths)
    if len(bad):
        raise LookalikeError(
            f"{len(bad)} of {len(vectors)} vectors are zero or not finite, the first in row {bad[0]}, so they have no "
            "cosine. Were they read like that, rebuild them: dvc repro --force extract; were they refined into it, the "
            "images are too much alike for index.refine"
        )
    return np.asarray(vectors / lengths[:, np.newaxis])


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1 - 2^-11 and round it to multiples of 2^-12.

    vectors  float64, (N, d).

    Returns float32, (N, d), no row longer than 1. Inner products of such rows are exact in float32, in whatever order,
    with whatever instructions and beside whatever other rows they are summed: every partial sum is a multiple of 2^-24
    and, by Cauchy and Schwarz, at most 1. So all that is built on them is the same on every processor, bit for bit.
    Rounding moves a cosine by some 0.0001, half of what storage in float16 does; the shorter length makes it 0.001
    smaller. Raises LookalikeError as `unit_length` does.
    """
    scaled = directions(vectors) * (SHORTER * STEPS)
    steps = np.rint(scaled)
    long = np.einsum("nd,nd->n", steps, steps) > STEPS**2  # sums of integers, so exact
    steps[long] = np.trunc(scaled[long])
    return ((steps + 0.0) / STEPS).astype(np.float32)  # + 0 turns -0 into 0


def _without_direction(lengths: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))


def product(rows: np.ndarray, matrix: np.ndarray, *, exact: bool) -> np.ndarray:
    """Matrix product, float32 (N, D) times (D, M), whose every row is what it would be alone, on any processor.

    exact  the vectors are on the grid: float32 has all bits of a sum. Else sums are in float64, rounded to float32.

    BLAS may add in another order for another number of rows, so it is always given 64, padded with zeros: a query's
    similarities must not depend, not in their last bit, on which others were asked with it.
    """
    kind = np.float32 if exact else np.float64
    result = np.empty((len(rows), matrix.shape[1]), np.float32)
    for start in range(0, len(rows), PRODUCT):
        part = np.zeros((PRODUCT, rows.shape[1]), kind)
        own = rows[start : start + PRODUCT]
        part[: len(own)] = own
        for first in range(0, matrix.shape[1], COLUMNS):
            columns = np.asarray(matrix[:, first : first + COLUMNS], kind)
            result[start : start + PRODUCT, first : first + COLUMNS] = (part @ columns)[: len(own)]
    return result
