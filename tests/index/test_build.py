"""Which candidate is built, in which order vectors are added, and who trains it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lookalike.base.errors import LookalikeError
from lookalike.index import build
from lookalike.index.build import Design, Index, Sample
from lookalike.index.candidates import Wanted, candidates
from lookalike.index.tuning import Tuned
from lookalike.refinement.faiss_setup import faiss
from tests.helpers.index_parts import GRAPH, LISTS, PLANS, QUERIES, VECTORS, exactly, settings, vectors_of


def test_the_first_that_reaches_the_recall_is_chosen(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    sample, calls = object(), []
    recalls = iter([0.2, 0.899, 0.9])

    def built(*arguments: Any) -> Tuned:
        calls.append(arguments)
        return Tuned(arguments[1], next(recalls), 5.0)

    monkeypatch.setattr(build, "build_and_tune", built)
    tuned, why = build.choose(VECTORS, sample, settings(), print)
    assert (tuned.index.kind, tuned.index.storage) == ("ivf", "float16")
    assert why == "what is quicker takes too much or finds too little; 0.0 MB, no limit"
    assert told == [
        "flat, float32 reaches recall 0.2000, below 0.9; trying the next",
        "hnsw, float16 reaches recall 0.8990, below 0.9; trying the next",
    ]
    for number, (design, _) in zip(range(3), candidates(Wanted("auto", "auto", 0, GRAPH, LISTS), 120, 8), strict=False):
        assert calls[number] == (VECTORS, design, sample, 0.9, 3, 7, print)


def test_where_none_reaches_it_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_and_tune", lambda _, design, *more: Tuned(design, 0.51239, 1.0))
    with exactly(
        "index.target_recall is 0.9, which no candidate index reaches (hnsw, int8: 0.5124) with index.kind hnsw, "
        "index.storage int8, index.memory 4 MB; lower it, allow more memory (0 for no limit), or set kind and "
        "storage to auto"
    ):
        build.choose(VECTORS, None, settings(kind="hnsw", storage="int8", memory=4), print)
    with pytest.raises(LookalikeError, match=r"no candidate index reaches \(ivf, int8: 0\.5124; flat, float16: 0"):
        build.choose(np.zeros((65_537, 8), np.float32), None, settings(memory=2), print)
    with pytest.raises(LookalikeError, match=r"\(flat, int8: 0\.5124; hnsw, int8: 0\.5124; ivf, int8: 0\.5124; flat"):
        build.choose(VECTORS, None, settings(storage="int8"), print)


class Noted(Index):
    """Notes what it is given, in what order, and by how many threads."""

    def __init__(self, design: Design, trained: bool = True) -> None:
        super().__init__(design, self)
        self.is_trained, self.notes = trained, []

    def train(self, vectors: np.ndarray) -> None:
        self.notes.append(("train", vectors, faiss.omp_get_max_threads()))

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        self.notes.append(("add", vectors, rows.tolist(), faiss.omp_get_max_threads()))

    def finish(self, rows: np.ndarray) -> None:
        self.notes.append(("finish", rows.tolist()))


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Noted]]:
    made: list[Noted] = []

    def make(design: Design, dim: int) -> Noted:
        assert dim == 8
        made.append(Noted(design, trained=design.kind != "ivf"))
        return made[-1]

    monkeypatch.setattr(build, "make_index", make)
    monkeypatch.setattr(build, "BLOCK", 50)
    yield made


def test_vectors_are_added_in_blocks_and_in_order(noted: list[Noted]) -> None:
    assert build.build(VECTORS, PLANS["flat"], threads=2) is noted[0]
    *added, finished = noted[0].notes
    assert [rows for _, _, rows, _ in added] == [list(range(50)), list(range(50, 100)), list(range(100, 120))]
    assert all(np.array_equal(block, VECTORS[rows]) and threads == 2 for _, block, rows, threads in added)
    assert finished == ("finish", list(range(120)))
    with exactly("there are no vectors to index"):
        build.build(VECTORS[:0], PLANS["flat"])


@pytest.mark.parametrize("kind, lists, least", [("ivf", 300, 300), ("ivfpq", 20, 256), ("ivfpq", 300, 300)])
def test_too_few_vectors_for_the_lists_of_a_larger_collection_are_said(kind: Any, lists: int, least: int) -> None:
    """As where the gallery of the protocol is a small part of it; FAISS's own message is of its source."""
    design = Design(kind=kind, storage="float32", lists=lists, code_bytes=4 if kind == "ivfpq" else 0, effort=1)
    said = (
        f"{least - 1} images are too few to train {kind} with {lists} lists, which needs {least}; set index.kind to "
        "auto, flat or hnsw, or, if section protocol made this gallery, make it larger"
    )
    with exactly(said):
        build.build(vectors_of(least - 1), design)
    assert len(build.build(vectors_of(least), design)) == least


@pytest.mark.parametrize("least, lists, count", [(40, 3, 60), (80, 3, 80), (40, 7, 120), (400, 3, 120)])
def test_what_must_be_trained_sees_a_seeded_sample(
    least: int, lists: int, count: int, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 of each list, or the least there may be, or all there are."""
    monkeypatch.setattr(build, "TRAINING", 20)
    monkeypatch.setattr(build, "TRAINING_LEAST", least)
    plan = replace(PLANS["ivf"], lists=lists)
    for seed, threads in ((1, 2), (1, 1), (2, 1)):
        build.build(VECTORS, plan, threads, seed)
    trainings = [index.notes[0] for index in noted]
    assert [(name, threads) for name, _, threads in trainings] == [("train", 2), ("train", 1), ("train", 1)]
    first, again, other = (vectors for _, vectors, _ in trainings)
    rows = np.argmax(first @ VECTORS.T, axis=1)
    assert (len(rows), rows.tolist()) == (count, sorted(set(rows.tolist())))  # each once, in order
    assert np.array_equal(first, again)
    assert count == 120 or not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_what_is_held_back_is_added_after_tuning(
    kind: str, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    sample = Sample(np.array([3, 60]), QUERIES, QUERIES, VECTORS)

    def tuned(index: Noted, given: Sample, target: float) -> str:
        assert given is sample
        index.notes.append(("tune", target, faiss.omp_get_max_threads()))
        return "tuned"

    monkeypatch.setattr(build, "tune", tuned)
    assert build.build_and_tune(VECTORS, PLANS[kind], sample, 0.7, 2, 5, told.append) == "tuned"
    notes = noted[0].notes
    added = [row for note in notes if note[0] == "add" for row in note[2]]
    assert all(note[3] == 2 and np.array_equal(note[1], VECTORS[note[2]]) for note in notes if note[0] == "add")
    if kind == "flat":
        assert added == list(range(120))
        assert notes[-1] == ("tune", 0.7, 2)
        assert told == [50, 50, 20]
    else:
        others = [row for row in range(120) if row not in (3, 60)]
        assert added == [*others, 3, 60]
        assert notes[-3] == ("tune", 0.7, 2)
        assert notes[-1] == ("finish", added)
        assert told == [50, 50, 18, 2]


def test_one_thread_and_no_seed_unless_asked(noted: list[Noted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "tune", lambda *_: None)
    monkeypatch.setattr(build, "TRAINING_LEAST", 40)
    sample = Sample(np.array([3]), QUERIES, QUERIES, VECTORS)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        build.build(VECTORS, replace(PLANS["ivf"], lists=1))
        build.build_and_tune(VECTORS, replace(PLANS["ivf"], lists=1), sample, 0.5)
        build.build(VECTORS, replace(PLANS["ivf"], lists=1), 1, 0)
    finally:
        faiss.omp_set_num_threads(before)
    assert {note[-1] for index in noted for note in index.notes if note[0] in ("add", "train")} == {1}
    assert np.array_equal(noted[0].notes[0][1], noted[2].notes[0][1])
    assert np.array_equal(noted[1].notes[0][1], noted[2].notes[0][1])
