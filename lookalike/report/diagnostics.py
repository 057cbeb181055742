"""Tables and examples to look at: worst queries, confusions, near-duplicates, a map of the gallery."""

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from lookalike.base.vectors import unit_length
from lookalike.evaluation.measure import Evaluation
from lookalike.evaluation.protocol import Split
from lookalike.refinement.faiss_setup import faiss, matrix_products
from lookalike.report.plots import Example, Hit

OTHER, UNLABELLED = "(other)", "(no label)"
MOST_COMPARED = 20_000  # images; the time to compare all pairs grows with the square
# This many times the listed pairs are compared again in float64: the last bits of float32 depend on the processor.
ROUNDED_OTHERWISE = 4


def spread(result: Evaluation, split: Split, most: int) -> list[int]:
    """Choose queries spread evenly from the best average precision to the worst; in file order if not measured.

    Returns numbers of queries.
    """
    count = len(split.queries)
    by_ap = np.argsort(-result.per_query["AP"].to_numpy(), kind="stable")
    order = np.arange(count) if split.unmeasurable else by_ap
    return [int(query) for query in order[np.linspace(0, count - 1, min(most, count)).round().astype(int)]]


def worst(result: Evaluation, most: int) -> list[int]:
    """Choose the queries with the lowest average precision, lowest first. Returns their numbers."""
    return [int(query) for query in np.argsort(result.per_query["AP"].to_numpy(), kind="stable")[:most]]


def examples(
    queries: list[int], result: Evaluation, split: Split, pixels: np.ndarray, labels: np.ndarray
) -> list[Example]:
    """Collect the pictures of some queries and of their hits.

    pixels  uint8, (N, S, S, 3); labels  str, (N,); both of the whole collection.
    """
    measured = not split.unmeasurable
    found = []
    for query in queries:
        row = split.queries[query]
        hits = [
            Hit(
                pixels[hit], labels[hit], cosine, bool(labels[hit] == labels[row]) if labels[hit] and measured else None
            )
            for hit, cosine in zip(split.gallery[result.rows[query]], result.cosines[query], strict=True)
            if np.isfinite(cosine)
        ]
        average_precision = float(result.per_query["AP"][query]) if measured else None
        found.append(Example(pixels[row], labels[row], average_precision, hits))
    return found


def confusions(result: Evaluation, most: int) -> pd.DataFrame:
    """List the queries of the `most` hardest classes: actual, predicted (the first hit's label); one row per query.

    Of other labels, the `most` frequent are kept; the rest become `(other)`.
    """
    hardest = set(result.by_class["class"].head(most))
    table = result.per_query.loc[result.per_query["label"].isin(hardest), ["label", "first"]]
    table = table.rename(columns={"label": "actual", "first": "predicted"})
    table["predicted"] = table["predicted"].replace("", UNLABELLED)
    wrong = table.loc[~table["predicted"].isin(hardest), "predicted"].value_counts(sort=False)
    often = set(wrong.sort_index().sort_values(ascending=False, kind="stable").head(most).index)
    table["predicted"] = table["predicted"].where(table["predicted"].isin(hardest | often), OTHER)
    return table.sort_values(["actual", "predicted"], ignore_index=True)


def near_duplicates(
    features: np.ndarray, paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, most: int, seed: int
) -> pd.DataFrame:
    """List the most similar pairs with different labels, by raw cosine.

    Columns: path, label, other_path, other_label, cosine, same_bytes. Wrong labels and copies under two names come
    first. A pair is missed only if each image has 50 others nearer to it. Above 20,000 images, a seeded sample is
    compared.
    """
    labelled = np.flatnonzero(labels != "")
    if len(labelled) > MOST_COMPARED:
        labelled = np.sort(np.random.default_rng(seed).choice(labelled, MOST_COMPARED, replace=False))
    if not len(labelled):
        return pd.DataFrame(columns=["path", "label", "other_path", "other_label", "cosine", "same_bytes"])
    vectors = unit_length(features[labelled])
    with matrix_products():
        cosines, rows = faiss.knn(vectors, vectors, min(50, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    one, place = np.nonzero(labels[labelled][rows] != labels[labelled][:, None])
    ends = np.sort(np.stack([one, rows[one, place]], axis=1), axis=1)  # (pairs, 2), rows of `vectors`
    pairs, where = np.unique(ends, axis=0, return_index=True)  # a pair can be found from either of its images
    pairs = pairs[np.argsort(-cosines[one, place][where], kind="stable")[: ROUNDED_OTHERWISE * most]]
    cosine = (vectors[pairs[:, 0]].astype(float) * vectors[pairs[:, 1]]).sum(axis=1).round(6)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -cosine))[:most]
    first, second = labelled[pairs[order]].T
    return pd.DataFrame({
        "path": paths[first], "label": labels[first], "other_path": paths[second], "other_label": labels[second],
        "cosine": cosine[order], "same_bytes": sha256[first] == sha256[second],
    })  # fmt: skip


def gallery_map(vectors: np.ndarray, labels: np.ndarray, most: int, seed: int) -> pd.DataFrame:
    """Lay out the gallery in the plane by t-SNE: x, y, class. Above `most` images, a seeded sample.

    vectors  float32, (N, d), unit length.

    Source: van der Maaten, Hinton, Visualizing Data using t-SNE, JMLR 2008; scikit-learn's, started from PCA.
    The same vectors give the same layout on every x86 processor; other processors have other compiled loops.
    """
    rows = np.arange(len(vectors))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    if len(rows) < 5 or vectors.shape[1] < 2 or np.ptp(vectors[rows], axis=0).max() < 1e-6:  # nothing to lay out
        return pd.DataFrame(columns=["x", "y", "class"])
    from sklearn.manifold import TSNE  # a second to import

    # t-SNE amplifies the smallest difference, so its input and sums must not depend on the processor: BLAS computes
    # neither distances nor start, equal distances keep the order of rows, and one thread sums.
    chosen = vectors[rows].astype(np.float64)
    squares = (chosen**2).sum(axis=1)
    distances = np.maximum(squares[:, np.newaxis] + squares - 2 * chosen @ chosen.T, 0).round(9)  # (n, n)
    distances += np.arange(len(rows)) * 1e-15
    layout = TSNE(
        init=_plane(chosen), metric="precomputed", perplexity=min(30.0, (len(rows) - 1) / 3), random_state=seed
    )
    with threadpool_limits(1):
        places = layout.fit_transform(np.sqrt(distances))
    return pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "class": labels[rows]})


def _plane(vectors: np.ndarray) -> np.ndarray:
    """Compute the start of t-SNE: float64 (n, d) on its two principal axes, scaled to 0.0001, float32 (n, 2)."""
    centred = vectors - vectors.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]  # (d, 2), the largest first
    axes = axes * np.copysign(1, axes[np.abs(axes).argmax(axis=0), [0, 1]])  # the sign of an axis depends on the solver
    places = centred @ axes
    return np.asarray((places / places[:, 0].std()).round(6) * 1e-4, np.float32)
