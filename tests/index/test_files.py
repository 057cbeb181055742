"""The folder of an index: written, opened, and refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import to_builtins

from lookalike.base.errors import LookalikeError
from lookalike.index import build, files
from lookalike.index.hnsw import Hnsw
from lookalike.index.tuning import Tuned
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import OFF, Refinement
from tests.helpers.index_parts import COSINES, PLANS, QUERIES, VECTORS, exactly, settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index = build.build(VECTORS, PLANS["hnsw"])
    features = Refinement.fit(VECTORS, OFF)
    paths, labels = np.array([f"{row:03}.png" for row in range(120)]), np.array(["a", "b"] * 60)
    files.save(Tuned(index, 0.98765432, 12.6), "because", features, settings(), paths, labels, tmp_path)
    return tmp_path


def test_the_folder_says_what_it_is(folder: Path) -> None:
    assert json.loads((folder / "index.json").read_text()) == {
        "plan": {"design": to_builtins(PLANS["hnsw"]), "refine": to_builtins(OFF), "threads": 3, "seed": 7},
        "why": "because", "recall@10": 0.987654, "distances_a_query": 13,
        "metric": "cosine: inner product of unit vectors", "n": 120, "dim": 8, "faiss": faiss.__version__,
    }  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == [
        "components.npy", "image_paths.npy", "index.faiss", "index.json", "labels.npy", "mean.npy"
    ]  # fmt: skip
    assert np.load(folder / "image_paths.npy", allow_pickle=False)[119] == "119.png"
    assert np.load(folder / "labels.npy", allow_pickle=False)[:3].tolist() == ["a", "b", "a"]


def test_what_cannot_be_written_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("lost " + 197 * "x" + "\n  y ")

    monkeypatch.setattr(faiss, "write_index", fail)
    path = tmp_path / "i"
    said = re.escape(f"{path} cannot be written ( {197 * 'x'} y); make room, and run again")
    with pytest.raises(OSError, match=f"^{said}$"):
        build.build(VECTORS, PLANS["flat"]).save(path)


@pytest.mark.parametrize("mapped", [None, True, False])
def test_it_is_opened_as_asked(mapped: bool | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, opened = [], faiss.read_index
    monkeypatch.setattr(faiss, "read_index", lambda path, flag: flags.append(flag) or opened(path, flag))
    chosen = {} if mapped is None else {"mapped": mapped}
    index = files.open_file(folder, **chosen)
    assert (index.design, type(index)) == (PLANS["hnsw"], Hnsw)
    assert files.read(folder / "index.faiss", PLANS["hnsw"], **chosen).search(QUERIES, 1)[1].tolist() == (
        np.argmax(COSINES, axis=1)[:, None].tolist()
    )
    assert flags == [0 if mapped is False else faiss.IO_FLAG_MMAP_IFC] * 2


def test_what_cannot_be_opened_is_named(folder: Path) -> None:
    again = "dvc repro --force index"
    path = folder / "index.faiss"
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(LookalikeError) as caught:
        files.open_file(folder)
    said = re.fullmatch(
        rf"{re.escape(str(path))} cannot be read \((.+)\); make it anew: {again} \(or fetch it: dvc pull\)",
        str(caught.value),
    )
    assert 20 < len(said[1]) <= 200  # the end of what FAISS says
    assert "  " not in said[1]


def test_of_what_faiss_says_the_end_is_told_in_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("lost " + 197 * "x" + "\n  y ")

    monkeypatch.setattr(faiss, "read_index", fail)
    with exactly(f"{folder / 'index.faiss'} cannot be read ( {197 * 'x'} y); make it anew: dvc repro --force index (or "
                 "fetch it: dvc pull)"):  # fmt: skip
        files.open_file(folder)


def test_what_is_no_description_is_named(folder: Path) -> None:
    again, description = "dvc repro --force index", folder / "index.json"
    description.write_text("{}")
    with exactly(f"{description} does not describe an index; make it anew: {again}"):
        files.load_plan(folder)
    description.unlink()
    with exactly(f"{description} does not exist; make it: dvc repro index (or fetch it: dvc pull)"):
        files.load_plan(folder)


def test_a_plan_is_built_as_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(build, "build", lambda *arguments: asked.append(arguments) or "built")
    assert files.load_plan(folder).build(VECTORS) == "built"
    assert asked == [(VECTORS, PLANS["hnsw"], 3, 7)]
