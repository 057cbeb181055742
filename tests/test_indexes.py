"""Each kind of index against exact search, and the folder that describes it."""

import json
from pathlib import Path

import faiss
import numpy as np
import pytest

from lookalike import indexes
from lookalike.errors import LookalikeError
from lookalike.refine import OFF, Refinement
from lookalike.vectors import unit_length

RNG = np.random.default_rng(0)
VECTORS = unit_length(RNG.standard_normal((2000, 32)).astype(np.float32))
QUERIES = unit_length(RNG.standard_normal((50, 32)).astype(np.float32))


def settings(kind: str) -> indexes.Settings:
    return indexes.Settings.model_validate(
        {"kind": kind, "hnsw": {"neighbors": 16, "ef_construction": 100, "ef_search": 100}, "refine": OFF.model_dump()}
    )


def exact(k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = QUERIES @ VECTORS.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def test_flat_is_exact() -> None:
    scores, rows = indexes.build(VECTORS, settings("flat")).search(QUERIES, 10)
    expected_scores, expected_rows = exact(10)
    assert np.array_equal(rows, expected_rows)
    assert np.allclose(scores, expected_scores, atol=1e-6)


def test_hnsw_finds_nearly_all() -> None:
    scores, rows = indexes.build(VECTORS, settings("hnsw")).search(QUERIES, 10)
    recall = np.mean([np.isin(found, wanted).mean() for found, wanted in zip(rows, exact(10)[1], strict=True)])
    assert recall >= 0.95
    true = np.take_along_axis(QUERIES @ VECTORS.T, rows, axis=1)
    assert np.allclose(scores, true, atol=1e-6)  # what it returns are cosines, whatever it missed


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_the_same_input_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        indexes.build(VECTORS, settings(kind)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_building_leaves_the_number_of_threads_alone() -> None:
    before = faiss.omp_get_max_threads()
    indexes.build(VECTORS[:10], settings("hnsw"))
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("k", [0, -1, 2001])
def test_k_out_of_range_is_named(k: int) -> None:
    with pytest.raises(LookalikeError, match=f"k is {k}, but the index holds 2000 images; choose 1 to 2000"):
        indexes.build(VECTORS, settings("flat")).search(QUERIES, k)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_the_folder_describes_itself(kind: str, tmp_path: Path) -> None:
    paths, labels = np.array([f"{row:04}" for row in range(2000)]), np.array(["x"] * 2000)
    index = indexes.build(VECTORS, settings(kind))
    indexes.save(index, Refinement.fit(VECTORS, OFF), settings(kind), paths, labels, tmp_path)
    assert indexes.load_settings(tmp_path) == settings(kind)
    description = json.loads((tmp_path / "index.json").read_text())
    assert (description["kind"], description["n"], description["dim"]) == (kind, 2000, 32)
    assert np.load(tmp_path / "image_paths.npy", allow_pickle=False).tolist() == paths.tolist()
    assert index.nbytes == (tmp_path / "index.faiss").stat().st_size
    assert faiss.read_index(str(tmp_path / "index.faiss")).ntotal == len(index)


def test_a_missing_or_broken_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookalikeError, match=r"index\.json does not exist; make it: dvc repro index"):
        indexes.load_settings(tmp_path)
    for content in ("{", "{}", '{"settings": {"kind": "flat"}}'):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(LookalikeError, match="does not describe an index"):
            indexes.load_settings(tmp_path)


def test_unit_length() -> None:
    vectors = np.array([[3, 4], [0, 2]], np.float32)
    assert unit_length(vectors).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 1]]


@pytest.mark.parametrize("bad", [[0, 0], [np.nan, 1], [np.inf, 1]])
def test_a_vector_without_direction_is_named(bad: list[float]) -> None:
    with pytest.raises(LookalikeError, match="1 of 3 vectors are zero or not finite, the first in row 1"):
        unit_length(np.array([[1, 0], bad, [0, 1]], np.float32))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_stored_vectors_come_back(kind: str) -> None:
    index = indexes.build(VECTORS, settings(kind))
    rows = np.array([[5, -1], [1999, 0]])
    assert np.array_equal(index.vectors(rows), np.where(rows[:, :, None] < 0, 0, VECTORS[rows]))
