"""Unit vectors, comparable by cosine, whose products are the same on every processor."""

import numpy as np

from lookalike.base.errors import LookalikeError

PRODUCT = 64  # rows multiplied at a time
COLUMNS = 8192  # columns held in float64 at a time
STEPS = 1 << 12  # grid steps in a length of 1
SHORTER = 1 - 2.0**-11  # length of a vector before rounding to the grid, so that rounding makes none longer than 1


def without_direction(vectors: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows of (N, D) that are zero or not finite, and so have no direction."""
    return _without_direction(np.linalg.norm(vectors, axis=1))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1, so that an inner product is a cosine.

    vectors  float32 or float64, (N, D). Lengths are summed in float64, so that the order of summation does not show.

    Returns float32, (N, D). Raises LookalikeError if a row is zero or not finite, and so has no direction.
    """
    return directions(vectors).astype(np.float32)


def directions(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1 like `unit_length`, but return float64."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    bad = _without_direction(lengths)
    if len(bad):
        raise LookalikeError(
            f"{len(bad)} of {len(vectors)} vectors are zero or not finite, the first in row {bad[0]}, so they have no "
            "cosine. If they are like that in data/features, rebuild it: dvc repro --force extract; if refinement made "
            "them so, the images are too similar for index.refine"
        )
    return np.asarray(vectors / lengths[:, np.newaxis])


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1 - 2^-11 and round it to multiples of 2^-12.

    vectors  float64, (N, d).

    Returns float32, (N, d), no row longer than 1. Inner products of such rows are exact in float32, whatever the order
    of summation, the instructions used and the other rows in the batch: by Cauchy and Schwarz, every partial sum is a
    multiple of 2^-24 and at most 1. So everything computed from them is the same on every processor, bit for bit.
    Rounding moves a cosine by about 0.0001, half as much as float16 storage; the shorter length lowers it by 0.001.
    Raises LookalikeError as `unit_length` does.
    """
    scaled = directions(vectors) * (SHORTER * STEPS)
    steps = np.rint(scaled)
    long = np.einsum("nd,nd->n", steps, steps) > STEPS**2  # sums of integers, so exact
    steps[long] = np.trunc(scaled[long])
    return ((steps + 0.0) / STEPS).astype(np.float32)  # + 0 turns -0 into 0


def _without_direction(lengths: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))


def product(rows: np.ndarray, matrix: np.ndarray, *, exact: bool) -> np.ndarray:
    """Multiply float32 (N, D) by (D, M) so that a row's result does not depend on the other rows or the processor.

    exact  whether the vectors are on the grid, so that float32 sums are exact. Otherwise sums are computed in float64
           and rounded to float32.

    BLAS may sum in another order for another number of rows, so it always gets 64 rows, padded with zeros. Otherwise
    the last bits of a query's similarities would depend on the queries in the same batch.
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
