"""Nearest neighbours behind one small interface. A kind is a subclass of Index that makes and asks a FAISS index.

An index on disk is a folder that describes itself: `index.faiss`, `index.json` (plan, why, recall, N, D, version), the
refinement's `mean.npy` and `components.npy`, and `image_paths.npy` and `labels.npy`, row by row.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, convert, to_builtins

from lookalike import refine, tags
from lookalike.collection import save_strings
from lookalike.errors import LookalikeError
from lookalike.fa import faiss, matrix_products
from lookalike.files import write_json
from lookalike.indexes import hnsw, ivf
from lookalike.indexes.base import Design, Index, Kind, Storage, check_k, check_queries, in_order
from lookalike.indexes.choose import KINDS, Wanted, candidates, make_index
from lookalike.indexes.tuning import Sample, Tuned, draw, nearest_others, tune
from lookalike.params import Section
from lookalike.refine import Refinement

__all__ = [
    "Design", "Index", "Plan", "Sample", "Settings", "build", "build_and_tune", "check_k", "check_queries", "choose",
    "draw", "in_order", "load_plan", "nearest_others", "open_file", "read", "save",
]  # fmt: skip

INDEX_FILE = "index.faiss"
DESCRIPTION_FILE = "index.json"
BLOCK = 4096  # vectors added at a time
TRAINING = 64  # vectors a centroid of an ivf, drawn by seed; at least TRAINING_LEAST
TRAINING_LEAST = 65_536

Progress = Callable[[int], None]  # is told of n more vectors


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
    """How to build an index once more, on another gallery: nothing is chosen or tuned again."""

    design: Design
    refine: refine.Settings
    threads: int
    seed: int

    def build(self, vectors: np.ndarray) -> Index:
        """Build it over float32, (N, D), unit length."""
        return build(vectors, self.design, self.threads, self.seed)


def choose(
    vectors: np.ndarray, sample: Sample, settings: Settings, tell: Callable[[str], None], progress: Progress
) -> tuple[Tuned, str]:
    """Build the first index of those in question that reaches `target_recall` on a sample; and say why that one.

    vectors  float32, (N, D), unit length.

    Raises LookalikeError where none reaches it within `memory`.
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
        tell(f"{design.kind}, {design.storage} reaches recall {tuned.recall:.4f} of {settings.target_recall}; next")
    raise LookalikeError(
        f"index.target_recall is {settings.target_recall}, which no index in question reaches ({'; '.join(failed)}), "
        f"with index.kind {settings.kind}, index.storage {settings.storage}, index.memory {settings.memory} MB; ask "
        "for less, allow more memory (0 for no limit), or set kind and storage to auto"
    )


def build_and_tune(
    vectors: np.ndarray, design: Design, sample: Sample, target: float, threads: int = 1, seed: int = 0,
    progress: Progress = lambda rows: None,
) -> Tuned:  # fmt: skip
    """Index all but the sample, tune with it, then index it too. See `build` and `tune`."""
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
    """Build an index after a design, its effort included.

    vectors  float32, (N, D), unit length; may be memory-mapped, and is read a block at a time.

    With one thread the same input gives the same bytes: the order in which several of them link a graph's nodes would
    change it. Beside the index, building takes the memory of one block and of the training vectors. Raises
    LookalikeError where there are no vectors.
    """
    index, rows = _trained(vectors, design, threads, seed), np.arange(len(vectors))
    _add(index, vectors, rows, threads, lambda count: None)
    index.finish(rows)
    return index


def _trained(vectors: np.ndarray, design: Design, threads: int, seed: int) -> Index:
    """An empty index that has seen, if it must, a sample drawn by seed."""
    count, dim = vectors.shape
    if not count:
        raise LookalikeError("there are no vectors to index")
    index = make_index(design, dim)
    if not index.raw.is_trained:
        least = max(design.lists, ivf.CODES) if design.kind == "ivfpq" else design.lists
        if count < least:
            raise LookalikeError(
                f"{count} images are too few to train {design.kind} with {design.lists} lists, which takes {least}; "
                "set index.kind to auto, flat or hnsw, or, if they are a gallery of section protocol, enlarge that"
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


def save(
    tuned: Tuned, why: str, refinement: Refinement, settings: Settings, paths: np.ndarray, labels: np.ndarray,
    folder: Path,
) -> None:  # fmt: skip
    """Write an index, the refinement of its vectors and its description into an empty folder."""
    index = tuned.index
    index.save(folder / INDEX_FILE)
    refinement.save(folder)
    save_strings(folder / "image_paths.npy", paths.tolist())
    save_strings(folder / "labels.npy", labels.tolist())
    plan = Plan(design=index.design, refine=settings.refine, threads=settings.threads, seed=settings.seed)
    description: dict[str, Any] = {
        "plan": to_builtins(plan),
        "why": why,
        "recall@10": round(tuned.recall, 6),
        "distances_a_query": round(tuned.distances),
        "metric": "cosine: inner product of unit vectors",
        "n": len(index),
        "dim": index.dim,
        "faiss": faiss.__version__,
    }
    write_json(folder / DESCRIPTION_FILE, description)


def open_file(folder: Path, *, mapped: bool = True) -> Index:
    """Open the index that `save` wrote. Only for a folder that has been verified: FAISS trusts what it reads.

    mapped  leave it on disk and read what a search touches; else read it whole.
    """
    return read(folder / INDEX_FILE, load_plan(folder).design, mapped=mapped)


def read(path: Path, design: Design, *, mapped: bool = True) -> Index:
    """Read a FAISS file of that design; see `open_file`."""
    try:
        return KINDS[design.kind](design, faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0))
    except (RuntimeError, MemoryError) as error:  # missing, cut off, or no index
        reason = " ".join(str(error).split())[-200:]
        raise LookalikeError(
            f"{path} cannot be read ({reason}); make it anew: dvc repro --force index (or fetch it: dvc pull)"
        ) from None


def load_plan(folder: Path) -> Plan:
    """Read how an index was built."""
    path = folder / DESCRIPTION_FILE
    try:
        return convert(json.loads(path.read_text(encoding="utf-8"))["plan"], Plan)
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro index (or fetch it: dvc pull)") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LookalikeError(f"{path} does not describe an index; make it anew: dvc repro --force index") from None
