"""A small index to be changed, and a plain model of what its searches must find."""

import hashlib
import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import to_builtins

from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base.vectors import on_grid, unit_length
from lookalike.collection.collection import Gallery
from lookalike.collection.hits import Hit
from lookalike.collection.journal import Event
from lookalike.collection.query import Query
from lookalike.refinement import refinement
from tests.helpers.logged import logged
from tests.helpers.small_collection import write_index

D = 24
STEP = 2**-12 + 1e-6  # of a coordinate: another rounding before the grid may give the next step on it
CLOSE = 3e-4  # of a cosine, likewise, or float16 decoded by another way
ONE = Embedding(Network("B", "random", "", "avg", D, 1, "one"), 32, "pad")
LABELS = ["ant", "bee", "cat", ""]
RAW = to_builtins(refinement.OFF)
REFINED = {"power": 0.5, "pca": 12, "whiten": 0.5, "augment": 5, "expand": 4, "alpha": 1, "rerank": 0}
UNEXPANDED = REFINED | {"expand": 0}  # then a hit's cosine is the projected query's, to check by hand


def feature(seed: int, dim: int = D) -> np.ndarray:
    """What a network might give: no number below zero, images of one subject alike."""
    subject = np.random.default_rng(seed % 7).exponential(size=dim)
    return (subject + 0.5 * np.random.default_rng(seed).exponential(size=dim)).astype(np.float32)


@dataclass(frozen=True)
class Built:
    """An index on disk, and what it was made of."""

    folder: Path
    paths: list[str]
    labels: list[str]

    def open(self, changes: Path, **options: Any) -> Gallery:
        return Gallery(self.folder, changes, **options)


def build(
    folder: Path, count: int = 60, kind: str = "flat", storage: str = "auto", refined: dict[str, Any] = REFINED,
    embedding: Embedding = ONE, more: dict[str, int] | None = None, less: tuple[str, ...] = (), recall: float = 0.99,
) -> Built:  # fmt: skip
    """Build an index as the stage does. more: further images, path to seed; less: paths left out."""
    seeds = {f"{LABELS[seed % 4]}/{seed:05}.png".lstrip("/"): seed for seed in range(count)} | (more or {})
    paths = sorted(set(seeds) - set(less))
    labels = [path.rpartition("/")[0] for path in paths]
    features = {path: feature(seeds[path], embedding.network.dim) for path in paths}
    write_index(folder, features, embedding, refined, kind=kind, storage=storage, target_recall=recall)
    return Built(folder, paths, labels)


def add(gallery: Gallery, path: str, seed: int, label: str = "", *, over: bool = False) -> None:
    content = f"picture {seed}".encode()
    dim = gallery.embedding.network.dim
    digest = hashlib.sha256(content).hexdigest()
    gallery.add(path, label, digest, content, feature(seed, dim), replace=over)


def latest(gallery: Gallery) -> dict[str, Event]:
    return {event.path: event for event in gallery.journal.events()}


class Model:
    """What should be found: label and stored vector of each path, and nothing clever."""

    def __init__(self, built: Built, gallery: Gallery) -> None:
        vectors = gallery.index.vectors(np.arange(len(built.paths)))
        self.refinement = gallery.refinement
        self.images = dict(zip(built.paths, zip(built.labels, vectors, strict=True), strict=True))

    @classmethod
    def of(cls, built: Built, gallery: Gallery) -> "Model":
        """Of the index and every event in the journal."""
        model = cls(built, gallery)
        for event in gallery.journal.events():
            model.images.pop(event.path, None)
            if event.image:
                model.images[event.path] = event.label, event.vector
        return model

    def nearest(
        self, query: np.ndarray, count: int, label: str | None = None, but: str = ""
    ) -> list[tuple[float, str]]:
        names = [path for path, (own, _) in self.images.items() if label in (None, own) and path != but]
        cosines = [float(np.clip(self.images[path][1] @ query, -1, 1)) for path in names]
        return sorted(zip(cosines, names, strict=True), key=lambda pair: -pair[0])[:count]

    def drawn_to(self, query: np.ndarray, neighbours: list[tuple[float, str]], weight: float = 1) -> np.ndarray:
        """Expansion, and joining, by their definition."""
        alpha = self.refinement.settings.alpha
        moved = sum((weight * max(cosine, 0) ** alpha * self.images[path][1] for cosine, path in neighbours), query)
        scaled = on_grid if self.refinement.settings.pca else unit_length
        return scaled(np.asarray(moved, np.float64)[np.newaxis])[0] if neighbours else query

    def asked(self, query: np.ndarray) -> np.ndarray:
        """What a projected query becomes."""
        return self.drawn_to(query, self.nearest(query, self.refinement.settings.expand))

    def joined(self, path: str, raw: np.ndarray) -> np.ndarray:
        """The vector that an image should be given."""
        query = self.refinement.project(raw[np.newaxis])[0]
        neighbours = self.nearest(query, max(self.refinement.settings.augment - 1, 0), but=path)
        return self.drawn_to(query, neighbours, refinement.JOIN_WEIGHT)

    def check(
        self, hits: list[Hit], query: np.ndarray, k: int, least: float, label: str | None, but: str = ""
    ) -> float:
        """Every hit is true, and there are as many as there should be; returns how much of the best was found."""
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        assert len({hit.path for hit in hits}) == len(hits)
        asked = self.asked(query)
        for hit in hits:
            assert hit.path in self.images and hit.path != but
            own, vector = self.images[hit.path]
            assert hit.label == own and label in (None, own)
            assert hit.cosine == pytest.approx(np.clip(vector @ asked, -1, 1), abs=CLOSE)
            assert hit.cosine >= least
        assert all(one.cosine >= other.cosine for one, other in itertools.pairwise(hits))
        best = [cosine for cosine, _ in self.nearest(asked, k, label, but)]
        if least == -1:
            assert len(hits) == len(best)
        if not best:
            return 1.0
        found = sum(hit.cosine >= best[-1] - CLOSE for hit in hits)
        surely, wanted = (sum(cosine >= max(least + slack, -1) for cosine in best) for slack in (CLOSE, -CLOSE))
        assert len(hits) <= wanted
        return found / surely if surely else 1.0


def everything(built_index: Built, changes: Path) -> Any:
    """All that a user can learn from a collection."""
    with logged() as told:
        gallery = built_index.open(changes)
    hits = gallery.search(np.stack([feature(1), feature(9)]), Query(40))
    events = gallery.journal.events()
    pictures = [gallery.journal.image(event.image) for event in events if event.image]
    about = asdict(gallery.journal.bound()) if gallery.journal.bound() else None
    return (
        hits,
        gallery.similar(built_index.paths[0], Query(20)),
        pictures,
        [event.number for event in events],
        about,
        told,
    )
