"""Vectors on a circle, a searcher of some vectors, and the paths of hits."""

from typing import Any

import numpy as np

from lookalike.collection.hits import Hit
from lookalike.index import build
from lookalike.index.build import Design
from lookalike.index.searcher import Searcher
from lookalike.refinement.refinement import OFF, Refinement


def paths(hits: list[Hit]) -> list[str]:
    return [hit.path for hit in hits]


def circle(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def searcher_of(vectors: np.ndarray, **design: Any) -> Searcher:
    refinement = Refinement.fit(vectors, OFF)
    return Searcher(refinement, build.build(vectors, Design(**({"kind": "flat", "storage": "float32"} | design))))
