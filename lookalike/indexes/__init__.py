"""Nearest neighbours behind one small interface. A kind is a module with a `build` that returns a FAISS index.

An index on disk is a folder that describes itself: `index.faiss`, `index.json` (kind, settings, N, D, version), the
refinement's `mean.npy` and `components.npy`, and `image_paths.npy` and `labels.npy`, row by row.
"""

import json
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from lookalike import refine
from lookalike.collection import save_strings
from lookalike.errors import LookalikeError
from lookalike.files import write_json
from lookalike.indexes import flat, hnsw
from lookalike.params import Section
from lookalike.refine import Refinement

INDEX_FILE = "index.faiss"
DESCRIPTION_FILE = "index.json"


class Settings(Section):
    """Section `index` of params.yaml."""

    kind: Literal["flat", "hnsw"]
    hnsw: hnsw.Settings
    refine: refine.Settings


class Index:
    """Unit vectors that can be searched by cosine."""

    def __init__(self, kind: str, index: faiss.Index) -> None:
        """Wrap a built FAISS index whose metric is the inner product."""
        self.kind = kind
        self._index = index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D, the length of a stored vector."""
        return int(self._index.d)

    @property
    def nbytes(self) -> int:
        """Bytes of the index as it is stored and held in memory."""
        return int(faiss.serialize_index(self._index).nbytes)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar rows of each query, best first.

        queries  float32, (Q, D), unit length.
        k        1 to N.

        Returns cosines, float32 (Q, k), and rows, int64 (Q, k).
        """
        if not 1 <= k <= len(self):
            raise LookalikeError(f"k is {k}, but the index holds {len(self)} images; choose 1 to {len(self)}")
        scores, rows = self._index.search(queries, k)
        return scores, rows

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of some rows: int64 (...) -> float32 (..., D); zeros for row -1."""
        found = self._index.reconstruct_batch(np.maximum(rows, 0).ravel()).reshape(*rows.shape, -1)
        found[rows < 0] = 0
        return np.asarray(found)

    def save(self, path: Path) -> None:
        """Write the FAISS file."""
        faiss.write_index(self._index, str(path))


def build(vectors: np.ndarray, settings: Settings) -> Index:
    """Build an index of the kind that the settings ask for.

    vectors  float32, (N, D), unit length.

    The same input gives the same bytes: one thread builds, because the order in which several of them link a graph's
    nodes would change it.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index = flat.build(vectors) if settings.kind == "flat" else hnsw.build(vectors, settings.hnsw)
        return Index(settings.kind, index)
    finally:
        faiss.omp_set_num_threads(threads)


def save(
    index: Index, refinement: Refinement, settings: Settings, paths: np.ndarray, labels: np.ndarray, folder: Path
) -> None:
    """Write an index, the refinement of its vectors and its description into an empty folder."""
    index.save(folder / INDEX_FILE)
    refinement.save(folder)
    save_strings(folder / "image_paths.npy", paths.tolist())
    save_strings(folder / "labels.npy", labels.tolist())
    description: dict[str, Any] = {
        "kind": index.kind,
        "metric": "cosine: inner product of unit vectors",
        "n": len(index),
        "dim": index.dim,
        "settings": settings.model_dump(),
        "faiss": faiss.__version__,
    }
    write_json(folder / DESCRIPTION_FILE, description)


def load(folder: Path) -> Index:
    """Open an index that `save` wrote."""
    kind, path = load_settings(folder).kind, folder / INDEX_FILE
    try:
        return Index(kind, faiss.read_index(str(path)))
    except RuntimeError as error:  # missing, cut off, or no index
        reason = " ".join(str(error).split())[-200:]
        raise LookalikeError(
            f"{path} cannot be read ({reason}); make it anew: dvc repro --force index (or fetch it: dvc pull)"
        ) from None


def load_settings(folder: Path) -> Settings:
    """Read the settings that an index was built with."""
    path = folder / DESCRIPTION_FILE
    try:
        return Settings.model_validate(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro index (or fetch it: dvc pull)") from None
    except (ValueError, KeyError, TypeError):
        raise LookalikeError(f"{path} does not describe an index; make it anew: dvc repro --force index") from None
