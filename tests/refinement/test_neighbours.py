"""Neighbours among many: looked for in lists, compared in float64, on the grid."""

import numpy as np
import pytest

from lookalike.base.vectors import STEPS, on_grid, unit_length
from lookalike.refinement import faiss_setup
from tests.helpers.clustered_features import FEATURES


def test_many_are_looked_for_in_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    from lookalike.refinement.faiss_setup import faiss
    from lookalike.refinement.refinement import _among

    made, vectors = [], on_grid(FEATURES.astype(np.float64))

    class Noted(faiss.IndexIVFFlat):
        def __init__(self, coarse, *arguments) -> None:
            super().__init__(coarse, *arguments)
            made.append({"given": (type(coarse), coarse.d, *arguments), "added": [], "index": self})

        def add(self, block: np.ndarray) -> None:
            made[-1]["added"].append(block)
            super().add(block)

    samples = []

    def noted(sample: np.ndarray, count: int, seed: int) -> np.ndarray:
        samples.append((len(sample), count, seed))
        return faiss_setup.centroids(sample, count, seed) if count < 2000 else np.zeros((count, 2), np.float32)

    monkeypatch.setattr(faiss, "IndexIVFFlat", Noted)
    monkeypatch.setattr("lookalike.refinement.refinement.centroids", noted)
    monkeypatch.setattr("lookalike.refinement.refinement.EXACT_NEIGHBOURS", 240)
    exactly = _among(vectors, exact=True)
    assert not made
    monkeypatch.setattr("lookalike.refinement.refinement.EXACT_NEIGHBOURS", 239)
    monkeypatch.setattr("lookalike.refinement.refinement.NEIGHBOUR_LISTS", 61)
    monkeypatch.setattr("lookalike.refinement.refinement.BLOCK", 100)
    everywhere = _among(vectors, exact=True)
    (first,) = made
    assert first["given"] == (faiss.IndexFlatIP, 24, 24, 61, faiss.METRIC_INNER_PRODUCT)  # 61: 4 times the root of 240
    assert (first["index"].nprobe, samples) == (61, [(240, 61, 0)])
    assert [len(block) for block in first["added"]] == [100, 100, 40]
    for mine, theirs in zip(everywhere(vectors[:9], 5), exactly(vectors[:9], 5), strict=True):
        assert np.array_equal(mine, theirs)
    assert exactly(vectors[:9], 5)[1][:, 0].tolist() == list(range(9))
    monkeypatch.setattr(Noted, "add", lambda self, block: None)
    _among(np.zeros((270_000, 2), np.float32), exact=True)
    assert made[-1]["given"][2:4] == (2, 2078)
    assert samples[-1] == (135_000, 2078, 0)  # every second, which leaves 64 for each list


def test_neighbours_off_the_grid_are_compared_again_in_float64() -> None:
    from lookalike.refinement.refinement import _among

    vectors = unit_length(FEATURES)
    cosines, rows = _among(vectors, exact=False)(vectors[:9], 5)
    wide = vectors.astype(np.float64)
    order = np.argsort(-(wide[:9] @ wide.T), axis=1)[:, :5]
    assert np.array_equal(rows, order)
    assert np.array_equal(cosines, np.take_along_axis(wide[:9] @ wide.T, order, axis=1).astype(np.float32))


def test_centroids_are_on_the_grid_and_near_what_they_stand_for() -> None:
    vectors = on_grid(FEATURES.astype(np.float64))
    found = faiss_setup.centroids(vectors, 8, seed=1)
    assert np.array_equal(found * STEPS, np.rint(found * STEPS)) and np.linalg.norm(found, axis=1).max() <= 1
    theirs = faiss_setup.faiss.Kmeans(24, 8, spherical=True, seed=1)
    theirs.train(vectors)
    assert (vectors @ found.T).max(axis=1).mean() > 0.99 * (vectors @ theirs.centroids.T).max(axis=1).mean()
    assert np.array_equal(faiss_setup.centroids(vectors, 8, seed=1), found)
    opposite = np.concatenate([vectors, -vectors])
    assert np.isfinite(faiss_setup.centroids(opposite, 1, seed=1)).all()
