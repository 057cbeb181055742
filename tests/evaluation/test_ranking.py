"""A search finds what the evaluation ranks; excluded rows are neither found nor used."""

import numpy as np
import pytest

from lookalike.base.vectors import unit_length
from lookalike.refinement.refinement import OFF, Refinement, Settings
from tests.helpers.clustered_features import FEATURES, FULL, changed, exact, searcher_of


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("chosen", [OFF, FULL, changed(rerank=40, pca=10), changed(expand=4, rerank=40, augment=3)])
def test_the_searcher_finds_what_the_evaluation_ranks(kind: str, chosen: Settings) -> None:
    """One code path: through an index that misses nothing here, the faces' search gives the measured ranking."""
    built = searcher_of(kind, FEATURES[20:], chosen)
    cosines, rows = built.search(FEATURES[:20], 10)
    ranked = exact(built.refinement, FEATURES[:20], built.refinement.gallery(FEATURES[20:]))
    assert np.allclose(cosines, ranked.cosines[:, :10], atol=1e-5)
    assert (rows == ranked.rows[:, :10]).mean() > 0.98  # equal but where two cosines differ in the last bits


@pytest.mark.parametrize("chosen", [OFF, changed(expand=4), changed(rerank=30), changed(expand=3, rerank=30, alpha=0)])
def test_excluded_rows_are_neither_found_nor_used(chosen: Settings) -> None:
    """A search that excludes rows equals a search in a gallery without them."""
    exclude = np.array([[3, 7, -1], [7, -1, -1]])
    without = [np.setdiff1d(np.arange(240), rows) for rows in ([3, 7], [7])]
    refinement = Refinement.fit(FEATURES, chosen)
    ranked = exact(refinement, FEATURES[[3, 7]], unit_length(FEATURES), exclude)
    _, found = searcher_of("flat", FEATURES, chosen).search(FEATURES[[3, 7]], 10, exclude)
    for number, rows in enumerate(without):
        alone = exact(refinement, FEATURES[[[3, 7][number]]], unit_length(FEATURES[rows]))
        expected = rows[alone.rows[0]]
        assert ranked.rows[number, : len(rows)].tolist() == expected.tolist()
        assert found[number].tolist() == expected[:10].tolist()


def test_fewer_left_than_asked_for_gives_minus_one() -> None:
    _, rows = searcher_of("flat", FEATURES[:3], OFF).search(FEATURES[:1], 3, np.array([[0]]))
    assert rows[0, 2] == -1
    assert set(rows[0, :2]) == {1, 2}
