"""A small network with random weights, some pixels, and their rows."""

from pathlib import Path

import numpy as np

from lookalike.extraction.extractor import Extractor
from lookalike.networks import backbones

NONE = Path("data/none")
RNG = np.random.default_rng(0)
PIXELS = np.repeat(np.repeat(RNG.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)  # 64 x 64


def make(
    folder: Path, backbone: str = "MobileNetV2", layer: str = "", pooling: str = "avg", seed: int = 0,
    *, mirror: bool = False,
) -> Path:  # fmt: skip
    folder.mkdir()
    model = backbones.create(backbone, "random", NONE, layer, seed)
    backbones.save(model, backbone, "random", pooling, folder, mirror=mirror)
    return folder


def rows_of(extractor: Extractor, pixels: np.ndarray, block: int = 7) -> np.ndarray:
    result = np.full((len(pixels), extractor.recipe.dim), np.nan, np.float32)
    extractor.embed((pixels[start : start + block] for start in range(0, len(pixels), block)), result.__setitem__)
    return result
