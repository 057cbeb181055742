"""Checks of embeddings: that each has a direction, and that a lower precision stays close to float32."""

from pathlib import Path

import numpy as np

from lookalike.artifacts.arrays import Images
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length, without_direction
from lookalike.extraction.extractor import Extractor

SAMPLE = 32  # images whose embeddings at a lower precision are compared with float32


def check_precision(extractor: Extractor, model: Path, images: Images, min_cosine: float) -> float:
    """Compare a sample's embeddings, float32 (n, D), with those computed in float32; return the least cosine.

    The sample are the images whose files have the lowest hashes, so that a growing collection keeps most of it.
    Raises LookalikeError if the least cosine is below `min_cosine`.
    """
    rows = np.sort(np.argsort(images.sha256, kind="stable")[:SAMPLE])
    reference = Extractor("openvino", model, images.pixels.shape[1], SAMPLE, "float32")
    full, low = (
        unit_length(embeddings(each, images.paths[rows], images.pixels[rows])) for each in (reference, extractor)
    )
    cosines = (full * low).sum(axis=1)  # (n,)
    worst = int(cosines.argmin())
    if cosines[worst] < min_cosine:
        raise LookalikeError(
            f"extract.precision {extractor.recipe.precision} moves the embedding of {images.paths[rows[worst]]} to a "
            f"cosine of {cosines[worst]:.4f} to float32, below extract.min_cosine {min_cosine}; choose another "
            "precision, calibrate int8 on more images, or lower extract.min_cosine"
        )
    return round(float(cosines[worst]), 6)


def embeddings(extractor: Extractor, paths: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Embed images held in memory: str (n,) and uint8 (n, S, S, 3) -> float32 (n, D)."""
    result = np.empty((len(pixels), extractor.recipe.dim), np.float32)

    def write(rows: np.ndarray, block: np.ndarray) -> None:
        check_directions(paths[rows], block, extractor.recipe.precision)
        result[rows] = block

    extractor.embed([pixels], write)
    return result


def check_directions(paths: np.ndarray, block: np.ndarray, precision: str) -> None:
    """Raise LookalikeError if a row of float32 (n, D) is zero or not finite, and so cannot be compared with others."""
    for bad in without_direction(block)[:1]:
        raise LookalikeError(
            f"the embedding of {paths[bad]} is zero or not finite, so nothing can be compared with it; "
            f"extract.precision is {precision}, try float32; or the weights are broken"
        )
