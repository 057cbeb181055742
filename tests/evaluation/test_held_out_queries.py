"""Nothing fitted ever sees a query."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.evaluation import measure, protocol
from lookalike.evaluation.protocol import Split
from lookalike.refinement.refinement import Refinement
from tests.helpers.clustered_features import FEATURES, FULL, LABELS, RNG, changed

SHUFFLED = np.random.default_rng(1).permutation(240)


def measured(queries: np.ndarray) -> tuple[np.ndarray, measure.Evaluation]:
    """The gallery, of 200 rows whoever asks, and the figures of some of the first 40."""
    features, labels = FEATURES[SHUFFLED], LABELS[SHUFFLED]
    split = Split(queries, np.arange(40, 240), np.zeros((len(queries), 0), np.int64), "", ())
    refinement = Refinement.fit(features[split.gallery], FULL)
    gallery = refinement.gallery(features[split.gallery])
    return gallery, measure.evaluate(features, labels, split, refinement, gallery, [1, 5], memory=1)


@cache
def everybody() -> tuple[np.ndarray, measure.Evaluation]:
    return measured(np.arange(40))


@settings(max_examples=30)  # of 40 ms each
@given(st.permutations(list(range(40))), st.integers(1, 40))
def test_a_query_cannot_influence_what_it_is_measured_against(order: list[int], kept: int) -> None:
    """With the gallery fixed, permuting or removing queries changes no gallery vector and no other query's figures."""
    all_gallery, all_figures = everybody()
    some_gallery, some_figures = measured(np.array(order[:kept]))
    assert np.array_equal(all_gallery, some_gallery)
    expected = all_figures.per_query.iloc[order[:kept]].reset_index(drop=True)
    assert some_figures.per_query.equals(expected)


def test_changing_the_queries_pixels_changes_no_gallery_vector() -> None:
    """Not even other features of the queries themselves reach the gallery."""
    split = protocol.split(
        np.array([f"{row:03}" for row in range(240)]), LABELS, np.array([f"{row:064}" for row in range(240)]),
        protocol.Settings(kind="holdout", fraction=0.2, seed=0, queries=UNUSED, gallery=UNUSED),
    )  # fmt: skip
    other = FEATURES.copy()
    other[split.queries] = RNG.standard_normal((len(split.queries), 24))
    before, after = (Refinement.fit(f[split.gallery], FULL).gallery(f[split.gallery]) for f in (FEATURES, other))
    assert np.array_equal(before, after)


def test_a_querys_copies_do_not_reach_a_listed_gallery(tmp_path: Path) -> None:
    """Row 200 has the bytes of query 0: its pixels, and so the query's, must not shape the gallery."""
    paths = np.array([f"{row:03}" for row in range(240)])
    hashes = np.array([f"{row:064}" for row in range(240)])
    hashes[200] = hashes[0]
    (tmp_path / "q.txt").write_text("000\n001\n")
    split = protocol.split(
        paths, LABELS, hashes, protocol.Settings(kind="lists", fraction=0.2, seed=0, queries=str(tmp_path / "q.txt"),
                                                 gallery=UNUSED),
    )  # fmt: skip
    assert 200 not in split.gallery
    assert "1 images are byte-identical to a listed query: left out of the gallery" in split.notes


@pytest.mark.parametrize("setting", ["pca", "augment"])
def test_a_gallery_that_saw_its_queries_is_refused(setting: str) -> None:
    paths = np.array([f"{row:03}" for row in range(240)])
    split = protocol.split(
        paths, LABELS, np.array([f"{row:064}" for row in range(240)]),
        protocol.Settings(kind="leave-one-out", fraction=0.2, seed=0, queries=UNUSED, gallery=UNUSED),
    )  # fmt: skip
    refinement = Refinement.fit(FEATURES, changed(**{setting: 5}))
    with pytest.raises(LookalikeError, match=rf"leave-one-out .* index\.refine\.{setting} would be fitted on"):
        measure.evaluate(FEATURES, LABELS, split, refinement, refinement.gallery(FEATURES), [1])
