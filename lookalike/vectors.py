"""Vectors that can be compared by cosine."""

import numpy as np

from lookalike.errors import LookalikeError

PRODUCT = 64  # rows multiplied at a time


def without_direction(vectors: np.ndarray) -> np.ndarray:
    """Rows of (N, D) that are zero or not finite, and so have no cosine with anything."""
    return _without_direction(np.linalg.norm(vectors, axis=1))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1, so that an inner product is a cosine.

    vectors  float32, (N, D).

    Returns float32, (N, D). Raises LookalikeError for a row that is zero or not finite: it has no direction.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = _without_direction(lengths)
    if len(bad):
        raise LookalikeError(
            f"{len(bad)} of {len(vectors)} vectors are zero or not finite, the first in row {bad[0]}, so they have no "
            "cosine. Were they read like that, rebuild them: dvc repro --force extract; were they refined into it, the "
            "images are too much alike for index.refine"
        )
    return np.asarray(vectors / lengths, dtype=np.float32)


def _without_direction(lengths: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))


def product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Matrix product, float32 (N, D) times (D, M), whose every row is what it would be alone.

    BLAS may add in another order for another number of rows, so it is always given 64, padded with zeros: a query's
    similarities must not depend, not in their last bit, on which others were asked with it.
    """
    result = np.empty((len(rows), matrix.shape[1]), np.float32)
    for start in range(0, len(rows), PRODUCT):
        part = rows[start : start + PRODUCT]
        if len(part) < PRODUCT:
            part = np.concatenate([part, np.zeros((PRODUCT - len(part), rows.shape[1]), np.float32)])
        result[start : start + PRODUCT] = (part @ matrix)[: len(result) - start]
    return result
