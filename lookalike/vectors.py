"""Vectors that can be compared by cosine."""

import numpy as np

from lookalike.errors import LookalikeError


def without_direction(vectors: np.ndarray) -> np.ndarray:
    """Rows of (N, D) that are zero or not finite, and so have no cosine with anything."""
    lengths = np.linalg.norm(vectors, axis=1)
    return np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1, so that an inner product is a cosine.

    vectors  float32, (N, D).

    Returns float32, (N, D). Raises LookalikeError for a row that is zero or not finite: it has no direction.
    """
    bad = without_direction(vectors)
    if len(bad):
        raise LookalikeError(
            f"{len(bad)} of {len(vectors)} vectors are zero or not finite, the first in row {bad[0]}; "
            "they have no cosine. Rebuild them: dvc repro --force extract"
        )
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
