"""The effort that reaches a recall, by hand."""

import numpy as np
import pytest

from lookalike.base.vectors import unit_length
from lookalike.index import build, tuning
from lookalike.index.build import Design, Sample
from lookalike.index.tuning import tune
from tests.helpers.index_parts import PLANS, QUERIES, VECTORS, Told, vectors_of


def degrees(*angles: float) -> np.ndarray:
    radians = np.radians(np.array(angles))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 2, 19, 20, 9_990, 10_000, 30_000])
def test_the_sample_is_a_seeded_tenth(count: int) -> None:
    held = tuning.draw(count, 3)
    assert len(held) == {0: 0, 1: 0, 2: 1, 19: 1, 20: 2, 9_990: 999}.get(count, 1000)
    assert (np.diff(held) > 0).all()
    assert held.tolist() == tuning.draw(count, 3).tolist()
    assert count < 20 or held.tolist() != tuning.draw(count, 4).tolist()


def test_the_nearest_others_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, held = degrees(0, 10, 20, 30, 30, 180, 50, 60), np.array([0, 6])
    for block in (1, 3, 8, 100):
        monkeypatch.setattr(tuning, "BLOCK", block)
        cosines, rows = tuning.nearest_others(degrees(0, 60), vectors, held, 3)
        assert (cosines.dtype, rows.dtype) == (np.float32, np.int64)
        assert rows[0].tolist() == [1, 2, 3] or rows[0].tolist() == [1, 2, 4]  # which of two equals is left open
        assert rows[1].tolist() == [7, 3, 4]
        assert cosines[1] == pytest.approx(np.cos(np.radians([0, 30, 30])), abs=1e-6)
        assert tuning.nearest_others(degrees(0), vectors, held, 99)[1].tolist() == [[1, 2, 3, 4, 7, 5]]
        assert tuning.nearest_others(degrees(0), vectors, np.arange(8), 3)[1].shape == (1, 0)
        assert tuning.nearest_others(degrees(0), vectors, held[:0], 2)[1].tolist() == [[0, 1]]


def test_recall_counts_what_is_as_near_as_the_kth() -> None:
    vectors = degrees(0, 1, 2, 3, 4, 5, 6, 7, 8, 20, -20, 20, 90)
    sample = Sample.of(vectors, np.array([0]), vectors[:1])
    assert (sample.k, sample.held.tolist(), sample.vectors is vectors) == (10, [0], True)
    assert sample.kth == pytest.approx(np.cos(np.radians([20])))
    assert sample.kth.dtype == np.float32
    hits = [1, 2, 3, 4, 5, 6, 7, 8]
    assert sample.recall(np.array([[*hits, 9, 11]])) == 1
    assert sample.recall(np.array([[*hits, 9, 12]])) == 0.9
    assert sample.recall(np.array([[*hits, -1, -1]])) == 0.8
    two = Sample.of(vectors, np.array([0]), vectors[[0, 0]])
    assert two.recall(np.array([[*hits, 9, 10], [*hits, -1, -1]])) == pytest.approx(0.9)
    few = Sample.of(vectors[:4], np.array([0]), vectors[:1])
    assert (few.k, few.recall(np.array([[1, 2, -1]]))) == (3, pytest.approx(2 / 3))
    # A row that is -1 counts nothing, though the first vector, which it would name, is near.
    assert Sample.of(vectors, np.array([1]), vectors[1:2]).recall(np.full((1, 10), -1)) == 0
    assert Sample.of(vectors[:1], np.array([0]), vectors[:1]).recall(np.zeros((1, 0), np.int64)) == 1  # nobody else
    nobody = Sample.of(vectors[:1], np.array([0]), vectors[:1])
    assert (nobody.kth.tolist(), nobody.kth.dtype) == ([0], np.float32)
    # The first row counts as any other, by its own cosine, though the next is far.
    first = Sample.of(degrees(0, 180, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), np.array([11]), degrees(0))
    assert first.recall(np.array([[0, 2, 3, 4, 5, 6, 7, 8, 9, 10]])) == 1
    assert Sample.of(vectors, np.zeros(0, np.int64), vectors[:0]).recall(np.zeros((0, 10), np.int64)) == 1


class Rising:
    """In the place of an index: its recall rises by steps; it notes what was tried."""

    kind = "ivf"

    def __init__(self, needed: dict[int, float], lists: int = 0, size: int = 500) -> None:
        self.needed, self.size, self.tried = needed, size, []
        self.design = Design(kind="ivf" if lists else "hnsw", storage="float32", lists=lists)

    def __len__(self) -> int:
        return self.size

    def distances(self, queries: np.ndarray, k: int, effort: int) -> tuple[float, int]:
        assert queries is Fake.queries
        self.tried.append(effort)
        self.k = k
        return max(recall for least, recall in self.needed.items() if least <= effort), 40 * effort

    def tuned(self, effort: int) -> tuple[str, int]:
        return "tuned", effort


class Fake:
    """A sample of four whose recall is what the index says it is."""

    queries, k = np.zeros((4, 2)), 3

    def recall(self, rows: float) -> float:
        return rows


@pytest.mark.parametrize(
    ("needed", "lists", "target", "tried"),
    [
        ({0: 0.5, 13: 0.9}, 0, 0.9, [10, 20, 15, 12, 13]),  # a graph begins with ten
        ({0: 0.9}, 0, 0.9, [10]),  # enough at once
        ({0: 0.5}, 0, 0.9, [10, 20, 40, 80, 160, 320, 500]),  # never: the most, which is its size
        ({0: 0.5, 5: 0.9}, 30, 0.9, [1, 2, 4, 8, 6, 5]),  # lists begin with one
        ({0: 0.5, 4: 0.9}, 30, 0.9, [1, 2, 4, 3]),
        ({0: 0.5, 30: 0.9}, 30, 0.9, [1, 2, 4, 8, 16, 30, 23, 26, 28, 29]),
        ({0: 0.5}, 30, 0.9, [1, 2, 4, 8, 16, 30]),
    ],
)
def test_the_least_effort_that_reaches_the_target(needed: dict, lists: int, target: float, tried: list[int]) -> None:
    index = Rising(needed, lists)
    tuned = tune(index, Fake(), target)
    assert index.tried == tried
    reaching = [effort for effort in tried if max(v for least, v in needed.items() if least <= effort) >= target]
    chosen = min(reaching, default=tried[-1])
    assert tuned.index == ("tuned", chosen)
    assert tuned.recall == max(v for least, v in needed.items() if least <= chosen)
    assert (tuned.distances, index.k) == (10 * chosen, 3)


def test_effort_ends_at_4096_and_at_the_size() -> None:
    for size, last in ((100_000, 4096), (12, 12), (3, 10)):
        index = Rising({0: 0.5}, size=size)
        tune(index, Fake(), 1.0)
        assert index.tried[-1] == last


def test_an_empty_sample_divides_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "queries", np.zeros((0, 2)))
    nobody = Fake()
    nobody.k = 0
    index = Rising({0: 1.0})
    assert tune(index, nobody, 1.0).distances == 400
    assert index.k == 1


def test_a_flat_index_only_rounds() -> None:
    sample = Sample.of(VECTORS, np.arange(5), QUERIES)
    whole = tune(build.build(VECTORS, PLANS["flat"]), sample, 0.5)
    assert (whole.recall, whole.distances, whole.index.design) == (1, 120, PLANS["flat"])
    rounded = build.build(VECTORS, Design(kind="flat", storage="int8"))
    others = np.arange(120) >= 5
    assert tune(rounded, sample, 0.5).recall == sample.recall(rounded.search(QUERIES, 10, others)[1]) > 0.9
    close, held = unit_length(1 + 0.02 * vectors_of(600, 16)), np.arange(0, 600, 20)
    near = Sample.of(close, held, close[held])
    rounded_close = build.build(close, Design(kind="flat", storage="int8"))
    rows = rounded_close.search(close[held], 10, ~np.isin(np.arange(600), held))[1]
    assert tune(rounded_close, near, 0.5).recall == near.recall(rows) < 1
    assert near.recall(rows) != near.recall(rounded_close.search(close[held], 10)[1])  # their own rows are left out
    unasked = Told()  # which would find the wrong rows
    unasked.design = PLANS["flat"]
    assert tune(unasked, near, 0.5).recall == 1
    assert tune(rounded, Sample.of(VECTORS, np.zeros(0, np.int64), QUERIES[:0]), 1).recall == 1
    assert tune(rounded, Sample.of(VECTORS, np.arange(120), QUERIES), 1).recall == 1  # nobody else
