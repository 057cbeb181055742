"""Building of an index: section `index` of params.yaml, the choice of a kind, training, tuning to a recall."""

import logging
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from lookalike.base.errors import LookalikeError
from lookalike.base.params import Section
from lookalike.index import hnsw, ivf, tags
from lookalike.index.base import Design, Index, Kind, Storage, check_k, check_queries, in_order
from lookalike.index.candidates import Wanted, candidates, make_index
from lookalike.index.tuning import Sample, Tuned, draw, nearest_others, tune
from lookalike.refinement import refinement as refine
from lookalike.refinement.faiss_setup import matrix_products
from lookalike.refinement.refinement import Refinement

logger = logging.getLogger(__name__)

__all__ = [
    "Design", "Index", "Plan", "Sample", "Settings", "build", "build_and_tune", "check_k", "check_queries", "choose",
    "draw", "fit", "in_order", "nearest_others",
]  # fmt: skip

INDEX_FILE = "index.faiss"
DESCRIPTION_FILE = "index.json"
BLOCK = 4096  # vectors added at a time
TRAINING = 64  # training vectors per ivf list, drawn by seed; at least TRAINING_LEAST in all
TRAINING_LEAST = 65_536

Progress = Callable[[int], None]  # called with the number of vectors added since the last call


class Settings(Section, frozen=True):
    """Section `index` of params.yaml."""

    kind: Kind | Literal["auto"]
    storage: Storage | Literal["auto"]
    target_recall: Annotated[float, Meta(gt=0, le=1)]
    memory: Annotated[int, Meta(ge=0)]
    threads: Annotated[int, Meta(ge=1, le=1024)]
    seed: Annotated[int, Meta(ge=0, lt=2**31)]
    hnsw: hnsw.Settings
    ivf: ivf.Settings
    tags: tags.Settings
    refine: refine.Settings


class Plan(Section, frozen=True):
    """Recipe of a built index, to build it again on another gallery without choosing or tuning."""

    design: Design
    refine: refine.Settings
    threads: int
    seed: int

    def build(self, vectors: np.ndarray) -> Index:
        """Build the index over vectors, float32 (N, D), unit length."""
        return build(vectors, self.design, self.threads, self.seed)


def choose(vectors: np.ndarray, sample: Sample, settings: Settings, progress: Progress) -> tuple[Tuned, str]:
    """Build candidates in order of preference until one reaches `target_recall`; return it and the reason for it.

    vectors  float32, (N, D), unit length.

    Raises LookalikeError if no candidate reaches it within `memory`.
    """
    wanted = Wanted(settings.kind, settings.storage, settings.memory, settings.hnsw, settings.ivf)
    failed = []
    for design, reason in candidates(wanted, *vectors.shape):
        tuned = build_and_tune(
            vectors, design, sample, settings.target_recall, settings.threads, settings.seed, progress
        )
        if tuned.recall >= settings.target_recall:
            return tuned, reason
        failed.append(f"{design.kind}, {design.storage}: {tuned.recall:.4f}")
        logger.info(
            f"{design.kind}, {design.storage} reaches recall {tuned.recall:.4f}, below {settings.target_recall}; "
            "trying the next"
        )
    raise LookalikeError(
        f"index.target_recall is {settings.target_recall}, which no candidate index reaches ({'; '.join(failed)}) with "
        f"index.kind {settings.kind}, index.storage {settings.storage}, index.memory {settings.memory} MB; lower it, "
        "allow more memory (0 for no limit), or set kind and storage to auto"
    )


def build_and_tune(
    vectors: np.ndarray, design: Design, sample: Sample, target: float, threads: int = 1, seed: int = 0,
    progress: Progress = lambda rows: None,
) -> Tuned:  # fmt: skip
    """Build an index without the sample, tune it on the sample, then add the sample. See `build` and `tune`."""
    index, everything = _trained(vectors, design, threads, seed), np.arange(len(vectors))
    others = everything if design.kind == "flat" else np.setdiff1d(everything, sample.held)
    _add(index, vectors, others, threads, progress)
    with matrix_products(threads):
        tuned = tune(index, sample, target)
    if design.kind != "flat":
        _add(index, vectors, sample.held, threads, progress)
        index.finish(np.concatenate([others, sample.held]))
    return tuned


def build(vectors: np.ndarray, design: Design, threads: int = 1, seed: int = 0) -> Index:
    """Build an index from a design, which includes the effort.

    vectors  float32, (N, D), unit length; may be memory-mapped, and is read a block at a time.

    With one thread the same input gives the same bytes; with several, the order in which they link a graph's nodes
    varies. Building takes the memory of the index, one block and the training vectors. Raises LookalikeError if there
    are no vectors.
    """
    index, rows = _trained(vectors, design, threads, seed), np.arange(len(vectors))
    _add(index, vectors, rows, threads, lambda count: None)
    index.finish(rows)
    return index


def _trained(vectors: np.ndarray, design: Design, threads: int, seed: int) -> Index:
    """Return an empty index, trained on a seeded sample if its kind needs training."""
    count, dim = vectors.shape
    if not count:
        raise LookalikeError("there are no vectors to index")
    index = make_index(design, dim)
    if not index.raw.is_trained:
        least = max(design.lists, ivf.CODES) if design.kind == "ivfpq" else design.lists
        if count < least:
            raise LookalikeError(
                f"{count} images are too few to train {design.kind} with {design.lists} lists, which needs {least}; "
                "set index.kind to auto, flat or hnsw, or, if section protocol made this gallery, make it larger"
            )
        few = min(count, max(TRAINING * design.lists, TRAINING_LEAST))
        rows = np.sort(np.random.default_rng(seed).choice(count, few, replace=False))
        with matrix_products(threads):
            index.train(np.ascontiguousarray(vectors[rows]))
    return index


def _add(index: Index, vectors: np.ndarray, rows: np.ndarray, threads: int, progress: Progress) -> None:
    with matrix_products(threads):
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            index.add(np.ascontiguousarray(vectors[block]), block)
            progress(len(block))


def fit(
    features: np.ndarray,
    settings: Settings,
    progress: Progress = lambda rows: None,
) -> tuple[Refinement, Tuned, str]:
    """Fit the refinement on a gallery's features, float32 (N, D), then choose, build and tune an index of the result.

    Returns the refinement, the index with its recall, and the reason for its kind. Peak memory: 4 N d bytes (twice that
    while augmenting), the index, and blocks of a fixed size (docs/scaling.md). Raises LookalikeError if there are no
    images.
    """
    from threadpoolctl import threadpool_limits  # 17 ms to import, which a search does not need

    if not len(features):
        raise LookalikeError("there are no images to index; see data/processed/rejected.csv for why")
    refinement = Refinement.fit(features, settings.refine)
    vectors = refinement.gallery(features)
    with threadpool_limits(settings.threads):
        sample = _sample(features, refinement, vectors, settings.seed)
    tuned, why = choose(vectors, sample, settings, progress)
    return refinement, tuned, why


def _sample(features: np.ndarray, refinement: Refinement, vectors: np.ndarray, seed: int) -> Sample:
    """Draw images of the gallery by seed and make queries of them, as if they were new to the gallery."""
    held = draw(len(vectors), seed)

    def nearest(queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        return nearest_others(queries, vectors, held, n)

    queries = refinement.expand(refinement.project(features[held]), nearest, lambda rows: vectors[rows])
    return Sample.of(vectors, held, queries)
