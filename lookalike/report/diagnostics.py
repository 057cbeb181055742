"""What a person looks at in a result: worst queries, confusions, near-duplicates, a map. Tables and picture lists."""

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from lookalike.base.vectors import unit_length
from lookalike.evaluation.measure import Evaluation
from lookalike.evaluation.protocol import Split
from lookalike.refinement.faiss_setup import faiss, matrix_products
from lookalike.report.plots import Example, Hit

OTHER, UNLABELLED = "(other)", "(no label)"
MOST_COMPARED = 20_000  # images; comparing all with all grows with the square
# Times as many pairs as are listed are compared again in float64: float32's last bits depend on the processor.
ROUNDED_OTHERWISE = 4


def spread(result: Evaluation, split: Split, most: int) -> list[int]:
    """Numbers of queries spread evenly from the best average precision to the worst; in file order if unmeasured."""
    count = len(split.queries)
    by_ap = np.argsort(-result.per_query["AP"].to_numpy(), kind="stable")
    order = np.arange(count) if split.unmeasurable else by_ap
    return [int(query) for query in order[np.linspace(0, count - 1, min(most, count)).round().astype(int)]]


def worst(result: Evaluation, most: int) -> list[int]:
    """Numbers of the queries with the lowest average precision, the lowest first."""
    return [int(query) for query in np.argsort(result.per_query["AP"].to_numpy(), kind="stable")[:most]]


def examples(
    queries: list[int], result: Evaluation, split: Split, pixels: np.ndarray, labels: np.ndarray
) -> list[Example]:
    """Pictures of some queries and of what they found.

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
    """actual, predicted: one row a query of the `most` hardest classes, predicted being the label of its first hit.

    Labels that are predicted for none of these classes often enough to be among them are `(other)`.
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
    """path, label, other_path, other_label, cosine, same_bytes: the most similar pairs with different labels.

    By raw cosine. Mislabelled images and copies under two names come first. A pair is missed only where each has 50
    others nearer to it. Above 20,000 images, a seeded sample is compared.
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
    pairs, where = np.unique(ends, axis=0, return_index=True)  # a pair may be found from either end
    pairs = pairs[np.argsort(-cosines[one, place][where], kind="stable")[: ROUNDED_OTHERWISE * most]]
    cosine = (vectors[pairs[:, 0]].astype(float) * vectors[pairs[:, 1]]).sum(axis=1).round(6)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -cosine))[:most]
    first, second = labelled[pairs[order]].T
    return pd.DataFrame({
        "path": paths[first], "label": labels[first], "other_path": paths[second], "other_label": labels[second],
        "cosine": cosine[order], "same_bytes": sha256[first] == sha256[second],
    })  # fmt: skip


def gallery_map(vectors: np.ndarray, labels: np.ndarray, most: int, seed: int) -> pd.DataFrame:
    """x, y, class: the gallery laid out in the plane by t-SNE, neighbours together; a seeded sample above `most`.

    vectors  float32, (N, d), unit length.

    Source: van der Maaten, Hinton, Visualizing Data using t-SNE, JMLR 2008; scikit-learn's, started from PCA.
    The same vectors give the same layout on every x86 processor; its loops are compiled otherwise for others.
    """
    rows = np.arange(len(vectors))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    if len(rows) < 5 or vectors.shape[1] < 2 or np.ptp(vectors[rows], axis=0).max() < 1e-6:  # nothing to lay out
        return pd.DataFrame(columns=["x", "y", "class"])
    from sklearn.manifold import TSNE  # a second to import

    # t-SNE blows the least difference up, so whatever rounds otherwise on another processor is kept from it: BLAS
    # computes neither distances nor start, equal distances keep the order of rows, and one thread sums.
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
    """Where t-SNE starts: the two principal axes of float64 (n, d), 0.0001 wide: float32 (n, 2)."""
    centred = vectors - vectors.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]  # (d, 2), the largest first
    axes = axes * np.copysign(1, axes[np.abs(axes).argmax(axis=0), [0, 1]])  # solvers differ in an axis's sign
    places = centred @ axes
    return np.asarray((places / places[:, 0].std()).round(6) * 1e-4, np.float32)
