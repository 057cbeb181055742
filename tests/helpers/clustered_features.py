"""Features in eight clusters, and what exact search finds among them."""

import numpy as np
from msgspec import convert, to_builtins

from lookalike.evaluation.ranking import map_rankings
from lookalike.index import build
from lookalike.index.searcher import Searcher
from lookalike.refinement.refinement import OFF, Refinement, Settings

RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((8, 24)) * 2
LABELS = np.repeat(np.arange(8), 30).astype(str)
FEATURES = (CENTRES.repeat(30, axis=0) + RNG.standard_normal((240, 24)) * np.linspace(0.2, 3, 24)).astype(np.float32)
FULL = Settings(power=0.5, pca=10, whiten=0.5, augment=5, expand=4, alpha=1.5, rerank=0)


def changed(**changes: object) -> Settings:
    return convert(to_builtins(OFF) | changes, Settings)


def exact(refinement: Refinement, features: np.ndarray, gallery: np.ndarray, exclude: np.ndarray | None = None):
    exclude = np.zeros((len(features), 0), np.int64) if exclude is None else exclude
    (found,) = map_rankings(lambda ranking: ranking, refinement, features, gallery, exclude, 1 << 30)
    return found


def searcher_of(kind: str, features: np.ndarray, chosen: Settings) -> Searcher:
    refinement = Refinement.fit(features, chosen)
    graph = {"neighbors": 32, "ef_construction": 400, "effort": 400} if kind == "hnsw" else {}
    design = build.Design(kind=kind, storage="float32", **graph)
    return Searcher(refinement, build.build(refinement.gallery(features), design))
