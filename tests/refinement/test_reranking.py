"""Re-ranking against its definition, and by hand."""

import numpy as np
import pytest

from lookalike.base.vectors import unit_length
from lookalike.refinement.refinement import OFF, Refinement
from lookalike.refinement.reranking import rerank
from tests.helpers.clustered_features import FEATURES, RNG, changed, exact


def halves(count: int) -> np.ndarray:
    """Of each vector's eight entries four are 0.5 or -0.5: cosines are exact multiples of 0.25, many of them equal."""
    vectors, rng = np.zeros((count, 8), np.float32), np.random.default_rng(2)
    for vector in vectors:
        vector[rng.choice(8, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return vectors


@pytest.mark.parametrize("vectors", [unit_length(FEATURES[:120]), halves(120)], ids=["distinct", "ties"])
def test_reranking_by_its_definition(vectors: np.ndarray) -> None:
    """k-reciprocal encoding written with sets and loops, as in the paper's equations 3, 7, 10, 11 and 12."""
    query, shortlist = vectors[0], vectors[1:]
    shortlist = shortlist[np.argsort(-(shortlist @ query), kind="stable")]
    points = [query, *shortlist]
    cosines = np.array([[float(a @ b) for b in points] for a in points])
    nearest = [np.argsort(-row, kind="stable").tolist() for row in cosines]
    near = [set(order[:31]) for order in nearest]
    encoded = np.zeros_like(cosines)
    for p in range(len(points)):
        for g in near[p]:
            if p in near[g]:
                encoded[p, g] = np.exp(cosines[p, g] - 1)
    encoded /= encoded.sum(axis=1, keepdims=True)
    encoded = np.array([np.mean([encoded[g] for g in order[:6]], axis=0) for order in nearest])
    jaccard = [1 - np.minimum(encoded[0], v).sum() / np.maximum(encoded[0], v).sum() for v in encoded]
    distance = 0.7 * np.array(jaccard) + 0.3 * (1 - cosines[0])
    ours = rerank(query, shortlist)
    assert sorted(ours.tolist()) == list(range(119))
    assert np.all(np.diff(distance[1:][ours]) >= -1e-5)  # in the order of that distance, up to rounding


def test_reranking_moves_the_shortlist_and_nothing_else() -> None:
    gallery = unit_length(FEATURES[20:])
    plain = exact(Refinement.fit(FEATURES, OFF), FEATURES[:5], gallery).rows
    moved = exact(Refinement.fit(FEATURES, changed(rerank=50)), FEATURES[:5], gallery).rows
    assert np.array_equal(plain[:, 50:], moved[:, 50:])
    assert np.array_equal(np.sort(plain[:, :50]), np.sort(moved[:, :50]))
    assert not np.array_equal(plain, moved)


def test_order_is_that_of_a_stable_sort() -> None:
    from lookalike.evaluation.ranking import _order

    cosines = np.round(RNG.standard_normal((50, 300)), 1).astype(np.float32)  # many ties
    cosines[0, :3], cosines[1, ::7] = [0.0, -0.0, 0.0], -np.inf
    assert np.array_equal(_order(cosines), np.argsort(-cosines, axis=1, kind="stable"))


def test_only_the_shortlist_is_reordered_and_only_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def reversed_list(query: np.ndarray, shortlist: np.ndarray) -> np.ndarray:
        asked.append((query.tolist(), shortlist.tolist()))
        return np.arange(len(shortlist))[::-1]

    monkeypatch.setattr("lookalike.refinement.refinement.rerank", reversed_list)
    cosines = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, -np.inf, -np.inf]])
    rows = np.array([[0, 5, 6, 7], [3, 0, -1, -1]])
    changed_cosines, changed_rows = cosines.copy(), rows.copy()
    refinement = Refinement.fit(FEATURES, changed(rerank=3))
    refinement.reorder(np.array([[1.0], [2.0]]), changed_cosines, changed_rows, lambda r: 10.0 * r[:, None])
    assert asked == [([1], [[0], [50], [60]]), ([2], [[30], [0]])]
    assert changed_rows.tolist() == [[6, 5, 0, 7], [0, 3, -1, -1]]
    assert changed_cosines.tolist() == [[0.7, 0.8, 0.9, 0.6], [0.4, 0.5, -np.inf, -np.inf]]
    Refinement.fit(FEATURES, OFF).reorder(np.zeros((2, 1)), cosines, rows, None)
    assert len(asked) == 2


@pytest.mark.filterwarnings("error")
def test_of_equals_a_shortlist_keeps_the_order() -> None:
    same = np.repeat(unit_length(FEATURES[:1]), 100, axis=0)
    assert rerank(same[0], same).tolist() == list(range(100))
    two = np.concatenate([np.repeat(unit_length(FEATURES[30:31]), 40, axis=0), same[:40]])
    assert rerank(two[0], two).tolist() == list(range(80))


def test_equals_among_others_keep_their_order() -> None:
    """Two pictures as near the query and copied, two of the first for each of the second: that one comes first."""
    query, often, seldom = np.array([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, 1]], np.float32) / 2
    shortlist = np.stack([often, often, seldom] * 10)
    rows = np.arange(30)
    assert rerank(query, shortlist).tolist() == [*rows[rows % 3 < 2], *rows[rows % 3 == 2]]


def test_near_and_average_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neighbour each beside itself, averaged over two: query and 0 choose each other, 1 and 2 too."""
    monkeypatch.setattr("lookalike.refinement.reranking.RECIPROCAL", 1)
    monkeypatch.setattr("lookalike.refinement.reranking.LOCAL", 2)
    angles = np.radians([0, 10, -50, -55])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    monkeypatch.setattr("lookalike.refinement.reranking.ORIGINAL_WEIGHT", 0.0)
    assert rerank(points[0], points[1:]).tolist() == [0, 1, 2]
    monkeypatch.setattr("lookalike.refinement.reranking.ORIGINAL_WEIGHT", 1.0)  # cosines alone
    assert rerank(points[0], points[[3, 1, 2]]).tolist() == [1, 2, 0]
