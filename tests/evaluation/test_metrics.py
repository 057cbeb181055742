"""Figures that can be checked by hand, laws that hold for any ranking, and trusted implementations to agree with."""

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lookalike.base.vectors import unit_length
from lookalike.evaluation import measure, metrics
from lookalike.evaluation.protocol import Split
from lookalike.refinement.refinement import OFF, Refinement

ranked = st.lists(st.booleans(), min_size=1, max_size=40).filter(any).map(np.array)


def test_by_hand() -> None:
    """Hits at ranks 2, 3 and 5 of 6; one more relevant image was not retrieved: R = 4."""
    relevant, total = np.array([0, 1, 1, 0, 1, 0], dtype=bool), np.array(4)
    assert metrics.precision_at_k(relevant, 3) == pytest.approx(2 / 3)
    assert metrics.precision_at_k(relevant, 6) == pytest.approx(3 / 6)
    assert metrics.recall_at_k(relevant, total, 3) == pytest.approx(2 / 4)
    assert metrics.hit_at_k(relevant, 1) == 0
    assert metrics.hit_at_k(relevant, 2) == 1
    assert metrics.average_precision(relevant, total) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 4)
    # best precision at recall 0.25 or more: 2/3 at rank 3; at 0.75: 3/5 at rank 5; 1.0 is never reached
    curve = metrics.interpolated_precision(relevant, total, np.array([0, 0.25, 0.5, 0.75, 1.0]))
    assert curve == pytest.approx([2 / 3, 2 / 3, 2 / 3, 3 / 5, 0])


def test_many_lists_at_once_by_hand() -> None:
    """Three lists, of R = 2, 3 and 1: every figure is float64, one of each list."""
    relevant = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    total = np.array([2, 3, 1])
    gain = 1 / np.log2(3)  # of a hit at rank 2
    for figure, expected in (
        (metrics.precision_at_k(relevant, 2), [1 / 2, 1 / 2, 0]),
        (metrics.recall_at_k(relevant, total, 3), [1, 2 / 3, 0]),
        (metrics.hit_at_k(relevant, 1), [1, 0, 0]),
        (metrics.average_precision(relevant, total), [(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 3, 0]),
        (metrics.average_precision_at_k(relevant, total, 2), [1 / 2, 1 / 4, 0]),
        (metrics.average_precision_at_k(relevant, total, 4), [(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 3, 0]),
        (metrics.r_precision(relevant, total), [1 / 2, 2 / 3, 0]),
        (metrics.average_precision_at_r(relevant, total), [1 / 2, (1 / 2 + 2 / 3) / 3, 0]),
        (metrics.ndcg_at_k(relevant, total, 2), [1 / (1 + gain), gain / (1 + gain), 0]),
        (metrics.ndcg_at_k(relevant, total, 4), [1.5 / (1 + gain), (gain + 0.5) / (1.5 + gain), 0]),
        (metrics.reciprocal_rank(relevant), [1, 1 / 2, 0]),
    ):
        assert figure.dtype == np.float64
        assert figure.tolist() == pytest.approx(expected)
    curves = metrics.interpolated_precision(relevant, total, np.array([0, 1 / 3, 0.5, 1]))
    assert curves.ravel().tolist() == pytest.approx([1, 1, 1, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 0, 0, 0, 0, 0])


def test_one_list_or_lists_of_lists() -> None:
    """Any leading axes: each figure of (3, 2) lists is that of each list alone."""
    relevant = np.random.default_rng(0).random((3, 2, 5)) < 0.5
    total, levels = np.maximum(relevant.sum(axis=-1), 1) + np.arange(2), np.array([0, 0.4, 1])
    for figure in (
        lambda hits, n: metrics.precision_at_k(hits, 3),
        lambda hits, n: metrics.recall_at_k(hits, n, 3),
        lambda hits, n: metrics.hit_at_k(hits, 1),
        metrics.average_precision,
        lambda hits, n: metrics.average_precision_at_k(hits, n, 3),
        metrics.r_precision,
        metrics.average_precision_at_r,
        lambda hits, n: metrics.ndcg_at_k(hits, n, 3),
        lambda hits, n: metrics.reciprocal_rank(hits),
        lambda hits, n: metrics.interpolated_precision(hits, n, levels),
    ):
        together = figure(relevant, total)
        alone = np.stack([figure(*one) for one in zip(relevant.reshape(6, 5), total.ravel(), strict=True)])
        assert together.shape[:2] == (3, 2)
        assert np.array_equal(together.reshape(alone.shape), alone)


def test_precision_keeps_its_denominator_when_few_are_relevant() -> None:
    assert metrics.precision_at_k(np.array([True, False, False, False]), 4) == 0.25


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_beyond_the_list_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}, but the list has 3 ranks"):
        metrics.precision_at_k(np.array([True, False, False]), k)


@given(ranked)
def test_average_precision_is_scikit_learns(relevant: np.ndarray) -> None:
    scores = -np.arange(len(relevant))
    ours = metrics.average_precision(relevant, relevant.sum())
    assert ours == pytest.approx(average_precision_score(relevant, scores), abs=1e-12)


TREC = {"map": "AP", "recip_rank": "RR", "Rprec": "R-precision", "P_5": "P@5", "recall_5": "R@5", "success_5": "Top-5",
        "ndcg_cut_5": "NDCG@5", "map_cut_5": "AP@5"}  # fmt: skip


@given(st.integers(5, 30), st.integers(1, 3), st.integers(0, 10_000))
def test_figures_agree_with_trec_eval(count: int, classes: int, seed: int) -> None:
    """Through the whole evaluation, ties included.

    Each vector has four entries of 0.5 or -0.5: its length is 1, and cosines are exact multiples of 0.25, many equal.
    """
    rng = np.random.default_rng(seed)
    vectors = np.zeros((count + 6, 8), np.float32)
    for vector in vectors:
        vector[rng.choice(8, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    labels = rng.integers(0, classes, count + 6).astype(str)
    queries = [row for row in range(6) if (labels[6:] == labels[row]).any()]
    if not queries:
        return
    split = Split(np.array(queries), np.arange(6, count + 6), np.zeros((len(queries), 0), np.int64), "", ())
    ours = evaluate(vectors, labels, split, [1, 5])
    qrels = {str(q): {str(row): int(labels[row] == labels[q]) for row in range(6, count + 6)} for q in queries}
    run = {}
    for q in queries:
        # Scores by rank, ties already in gallery order: trec_eval would break them by document name.
        order = np.argsort(-(vectors[6:] @ vectors[q]), kind="stable")
        run[str(q)] = {str(6 + row): float(count - rank) for rank, row in enumerate(order)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(TREC)).evaluate(run)
    for number, q in enumerate(queries):
        for name, our_name in TREC.items():
            expected = theirs[str(q)][name]
            if name == "map_cut_5":  # trec_eval divides by R, mAP@k by what k places can hold
                expected *= ours.per_query["R"][number] / min(ours.per_query["R"][number], 5)
            assert ours.per_query[our_name][number] == pytest.approx(expected, abs=1e-6), our_name


def test_average_precision_at_r_is_pytorch_metric_learnings_example() -> None:
    """Musgrave et al., figure 4: R = 10, the first ten ranks hold hits at 1; 1 and 10; 1 and 2; all."""
    total = np.array(10)
    for hits, expected in ([1], 0.10), ([1, 10], 0.12), ([1, 2], 0.20), (list(range(1, 11)), 1.0):
        relevant = np.isin(np.arange(1, 21), hits)
        assert metrics.average_precision_at_r(relevant, total) == pytest.approx(expected)
        assert metrics.r_precision(relevant, total) == len(hits) / 10


@given(ranked)
def test_moving_a_hit_up_never_hurts(relevant: np.ndarray) -> None:
    better = np.sort(relevant)[::-1]
    total = relevant.sum()
    assert metrics.average_precision(better, total) == pytest.approx(1)
    assert metrics.average_precision(relevant, total) <= 1 + 1e-12
    for k in range(1, len(relevant) + 1):
        assert metrics.precision_at_k(better, k) >= metrics.precision_at_k(relevant, k)


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 1000))
def test_many_queries_at_once_are_each_by_itself(queries: int, length: int, seed: int) -> None:
    relevant = np.random.default_rng(seed).random((queries, length)) < 0.3
    relevant[:, -1] = True
    total, levels = relevant.sum(axis=1), np.linspace(0, 1, 11)
    one_by_one = np.stack([metrics.interpolated_precision(r, n, levels) for r, n in zip(relevant, total, strict=True)])
    assert np.array_equal(metrics.interpolated_precision(relevant, total, levels), one_by_one)
    assert metrics.average_precision(relevant, total).tolist() == [
        metrics.average_precision(r, n) for r, n in zip(relevant, total, strict=True)
    ]


@given(st.integers(0, 1000))
def test_interpolated_precision_is_its_definition(seed: int) -> None:
    relevant = np.random.default_rng(seed).random(20) < 0.4
    relevant[3] = True
    total, levels = relevant.sum() + 1, np.linspace(0, 1, 21)
    hits = np.cumsum(relevant)
    precision, recall = hits / np.arange(1, 21), hits / total
    expected = [max(precision[recall >= level - 1e-9], default=0) for level in levels]
    assert metrics.interpolated_precision(relevant, total, levels) == pytest.approx(expected)


def whole(queries: list[int], count: int) -> Split:
    none = np.zeros((len(queries), 0), np.int64)
    return Split(np.array(queries), np.setdiff1d(np.arange(count), queries), none, "", ())


def evaluate(vectors: np.ndarray, labels: np.ndarray, split: Split, ks: list[int], memory: int = 1 << 30):
    raw = Refinement.fit(vectors, OFF)
    return measure.evaluate(vectors, labels, split, raw, raw.gallery(vectors[split.gallery]), ks, memory)


# Two classes on a circle. Query 0 (class a, 0 degrees) finds, in order: 1 (a, 10), 2 (b, 20), 3 (a, 30), 4 (b, 90).
ANGLES = np.deg2rad([0, 10, 20, 30, 90, 95])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
LABELS = np.array(["a", "a", "b", "a", "b", "b"])


def test_an_evaluation_by_hand() -> None:
    result = evaluate(VECTORS, LABELS, whole([0, 5], 6), [1, 2])
    figures = result.per_query
    assert figures["AP"].tolist() == pytest.approx([(1 + 2 / 3) / 2, (1 + 2 / 3) / 2])  # 5 finds 4 (b), 3 (a), 2 (b)
    assert figures["R"].tolist() == [2, 2]
    assert figures["first"].tolist() == ["a", "b"]
    assert figures["P@2"].tolist() == figures["R@2"].tolist() == [0.5, 0.5]
    assert result.rows.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]  # rows of the gallery, which is 1, 2, 3, 4
    assert result.cosines[0] == pytest.approx(np.cos(np.deg2rad([10, 20, 30, 90])), abs=1e-6)
    assert result.recall["recall"].tolist() == [0.5, 0.5]
    assert result.recall["best_possible"].tolist() == [0.5, 1.0]
    table = measure.with_intervals(result, result, 200, 0).set_index("figure")
    assert table.loc["mAP", "value"] == table.loc["mAP_class_mean", "value"] == pytest.approx(5 / 6)
    assert (table.loc["P@1", "value"], table.loc["Top-2", "value"]) == (1, 1)
    assert (table[["gain", "gain_low", "gain_high"]] == 0).all(axis=None)


def test_the_class_mean_counts_classes_not_queries() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_length(rng.standard_normal((60, 8)).astype(np.float32))
    labels = np.array(["a"] * 50 + ["b"] * 10)
    result = evaluate(vectors, labels, whole([0, 1, 2, 3, 4, 50], 60), [1])
    ap = result.per_query.groupby("label")["AP"].mean()
    table = measure.with_intervals(result, result, 200, 0).set_index("figure")["value"]
    assert table["mAP"] == pytest.approx((5 * ap["a"] + ap["b"]) / 6)
    assert table["mAP_class_mean"] == pytest.approx((ap["a"] + ap["b"]) / 2)
    assert result.by_class["mAP"].is_monotonic_increasing
    assert result.by_class.set_index("class")["gallery"].to_dict() == {"a": 45, "b": 9}


@settings(max_examples=30)  # of 40 ms each
@given(st.integers(0, 100))
def test_rotating_all_vectors_changes_no_figure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit_length(rng.standard_normal((40, 6)).astype(np.float32))
    labels = rng.choice(["a", "b", "c"], 40)
    split = whole([row for row in range(10) if (labels[10:] == labels[row]).any()], 40)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    before = evaluate(vectors, labels, split, [1, 5]).per_query
    after = evaluate(vectors @ rotation, labels, split, [1, 5]).per_query
    pd.testing.assert_frame_equal(before, after)  # but for ties, which random vectors do not have


def test_ties_keep_the_order_of_the_gallery() -> None:
    vectors = np.ones((6, 2), np.float32) / np.sqrt(np.float32(2))
    result = evaluate(vectors, np.array(list("aababa")), whole([0], 6), [1])
    assert result.rows.tolist() == [[0, 1, 2, 3, 4]]


def test_blocks_do_not_show() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_length(rng.standard_normal((300, 4)).astype(np.float32))
    split = whole(list(range(200)), 300)
    labels = rng.choice(["a", "b"], 300)
    one = evaluate(vectors, labels, split, [1, 5])  # all 200 queries in one block
    many = evaluate(vectors, labels, split, [1, 5], memory=1)  # the least, 64 at a time
    pd.testing.assert_frame_equal(one.per_query, many.per_query)
    pd.testing.assert_frame_equal(one.curve, many.curve)
    assert np.array_equal(one.rows, many.rows)


def test_what_cannot_be_measured_gives_tables_with_headers_and_still_ranks() -> None:
    none = np.zeros((1, 0), np.int64)
    split = Split(np.array([0]), np.array([1, 2, 3, 4, 5]), none, "the images have no labels", ())
    result = evaluate(VECTORS, np.full(6, ""), split, [1, 2])
    for table, columns in ((result.per_query, {"label", "P@1", "AP"}), (result.by_class, {"class", "mAP"}),
                           (result.curve, {"recall", "precision"}), (result.recall, {"k", "recall"})):  # fmt: skip
        assert len(table) == 0
        assert columns <= set(table.columns)
    assert result.rows.tolist() == [[0, 1, 2, 3, 4]]


def test_images_per_class_counts_each_side() -> None:
    table = measure.images_per_class(LABELS, whole([0, 5], 6))
    assert table.to_dict("list") == {"class": ["a", "b"], "images": [3, 3], "gallery": [2, 2], "queries": [1, 1]}
