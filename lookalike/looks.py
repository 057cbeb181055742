"""What a person looks at in a result: worst queries, confusions, near-duplicates, a map. Tables and picture lists."""

import faiss
import numpy as np
import pandas as pd

from lookalike.evaluation import Evaluation
from lookalike.plots import Example, Hit
from lookalike.protocol import Split
from lookalike.vectors import unit_length

OTHER = "(other)"
MOST_COMPARED = 20_000  # images; comparing all with all grows with the square


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
    found = []
    for query in queries:
        row = split.queries[query]
        hits = [
            Hit(pixels[hit], labels[hit], cosine, None if split.unmeasurable else bool(labels[hit] == labels[row]))
            for hit, cosine in zip(split.gallery[result.rows[query]], result.cosines[query], strict=True)
            if np.isfinite(cosine)
        ]
        average_precision = None if split.unmeasurable else float(result.per_query["AP"][query])
        found.append(Example(pixels[row], labels[row], average_precision, hits))
    return found


def confusions(result: Evaluation, most: int) -> pd.DataFrame:
    """actual, predicted: one row a query of the `most` hardest classes, predicted being the label of its first hit.

    Labels that are predicted for none of these classes often enough to be among them are `(other)`.
    """
    hardest = set(result.by_class["class"].head(most))
    table = result.per_query.loc[result.per_query["label"].isin(hardest), ["label", "first"]]
    table = table.rename(columns={"label": "actual", "first": "predicted"})
    wrong = table.loc[~table["predicted"].isin(hardest), "predicted"].value_counts(sort=False)
    often = set(wrong.sort_index().sort_values(ascending=False, kind="stable").head(most).index)
    table["predicted"] = table["predicted"].where(table["predicted"].isin(hardest | often), OTHER)
    return table.sort_values(["actual", "predicted"], ignore_index=True)


def near_duplicates(
    features: np.ndarray, paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, most: int, seed: int
) -> pd.DataFrame:
    """path, label, other_path, other_label, cosine: the most similar pairs of differently labelled images, raw cosine.

    Mislabelled images and copies under two names come first. Above 20,000 images, a seeded sample is compared.
    """
    labelled = np.flatnonzero(labels != "")
    if len(labelled) > MOST_COMPARED:
        labelled = np.sort(np.random.default_rng(seed).choice(labelled, MOST_COMPARED, replace=False))
    columns = ["path", "label", "other_path", "other_label", "cosine"]
    if len(labelled) < 2:
        return pd.DataFrame(columns=columns)
    vectors = unit_length(features[labelled])
    cosines, rows = faiss.knn(vectors, vectors, min(50, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    one, place = np.nonzero(labels[labelled][rows] != labels[labelled][:, None])
    first, second, cosine = labelled[one], labelled[rows[one, place]], cosines[one, place]
    keep = first < second  # each pair once; a pair is missed only where 50 others are nearer to both
    first, second, cosine = first[keep], second[keep], cosine[keep]
    order = np.lexsort((second, first, -cosine))[:most]
    first, second = first[order], second[order]
    cells = [paths[first], labels[first], paths[second], labels[second], cosine[order].astype(float)]
    table = pd.DataFrame(dict(zip(columns, cells, strict=True)))
    table.insert(5, "same_bytes", sha256[first] == sha256[second])
    return table


def gallery_map(vectors: np.ndarray, labels: np.ndarray, most: int, seed: int) -> pd.DataFrame:
    """x, y, class: the gallery laid out in the plane by t-SNE, neighbours together; a seeded sample above `most`.

    vectors  float32, (N, d), unit length.

    Source: van der Maaten, Hinton, Visualizing Data using t-SNE, JMLR 2008; scikit-learn's, started from PCA.
    """
    rows = np.arange(len(vectors))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    if len(rows) < 5:  # nothing to lay out
        return pd.DataFrame(columns=["x", "y", "class"])
    from sklearn.manifold import TSNE  # a second to import

    layout = TSNE(init="pca", perplexity=min(30.0, (len(rows) - 1) / 3), random_state=seed, n_jobs=1)
    places = layout.fit_transform(vectors[rows])
    return pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "class": labels[rows]})
