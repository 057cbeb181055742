"""An index with its trace beside it, and how its opening is refused."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base import files, params
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.collection import verify
from lookalike.collection.collection import Gallery
from lookalike.index import build
from lookalike.index import files as index_files
from lookalike.refinement.refinement import OFF

ROOT = Path(__file__).resolve().parents[2]
EMBEDDING = Embedding(Network("ResNet50", "random", "", "avg", 16, 1, "0" * 64), 64, "pad")
COUNT = 80
NAMES = (
    "components.npy", "embedding.json", "image_paths.npy", "index.faiss", "index.json", "labels.npy", "mean.npy",
)  # fmt: skip


def features(seed: int) -> np.ndarray:
    return unit_length(np.random.default_rng(seed).standard_normal((COUNT, 16)).astype(np.float32))


def write_index(folder: Path, seed: int, kind: str = "hnsw") -> Path:
    """An index folder with its trace beside it, as the stage writes them."""
    refine = replace(OFF, pca=8, power=0.5)
    settings = params.load(ROOT / "params.yaml", "index", build.Settings)
    settings = replace(settings, kind=kind, refine=refine)
    refinement, tuned, why = build.fit(features(seed), settings)
    folder.mkdir(parents=True)
    paths = np.array([f"{row:03}.png" for row in range(COUNT)])
    index_files.save(tuned, why, refinement, settings, paths, np.array(["a", "b"] * (COUNT // 2)), folder)
    EMBEDDING.save(folder)
    trace(folder)
    return folder


def trace(folder: Path) -> None:
    files.write_json(verify.trace_of(folder), {"images": COUNT, "files": [files.digests(folder)]})


def refused(folder: Path, *said: str) -> None:
    """Opening fails with one line that says all this."""
    with pytest.raises(LookalikeError) as caught:
        Gallery(folder, folder.parent / "changes")
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)
