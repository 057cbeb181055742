"""Evaluation of a gallery with its queries: figures per query, per class, and over all queries."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lookalike.evaluation import metrics
from lookalike.evaluation.bootstrap import interval
from lookalike.evaluation.protocol import Split, check_fair
from lookalike.evaluation.ranking import Mix, Ranking, map_rankings
from lookalike.refinement.refinement import Refinement

RECALL_LEVELS = np.linspace(0, 1, 101)
CURVE_RANKS = 200  # points of the precision-recall curve without interpolation
FIRST = 10  # hits kept of each query, for the report


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation. If quality cannot be measured, the tables have columns but no rows.

    per_query  one row per query: label, R (its relevant images), the first hit's label, and each figure.
    by_class   one row per class: queries, gallery, and the mean of each figure; hardest first (lowest mAP, then name).
    curve      recall, precision: the mean over queries of the interpolated precision-recall curve.
    curve_by_rank  k, recall, precision: mean R@k and P@k at ranks from 1 to the whole gallery, not interpolated.
    recall     k, recall, best_possible: mean R@k for every k up to the largest of `ks`, and that of a perfect ranking.
    rows       int64, (Q, up to 10): gallery rows of the first hits.
    cosines    float32, likewise.
    """

    per_query: pd.DataFrame
    by_class: pd.DataFrame
    curve: pd.DataFrame
    curve_by_rank: pd.DataFrame
    recall: pd.DataFrame
    rows: np.ndarray
    cosines: np.ndarray


def evaluate(
    features: np.ndarray,
    labels: np.ndarray,
    split: Split,
    refinement: Refinement,
    gallery: np.ndarray,
    ks: list[int],
    memory: int = 1 << 30,
    mix: Mix | None = None,
) -> Evaluation:
    """Rank the gallery exactly for every query, and measure the rankings.

    features    float32, (N, D), embeddings of the whole collection.
    labels      str, (N,). A gallery image is relevant to a query if it carries the query's label.
    refinement  fitted on the gallery's features; `gallery` holds the refined vectors, float32 (G, d).
    ks          ranks for the figures @k.
    memory      limit in bytes on the rankings held at a time.
    mix         adds other similarities to the cosines: see `map_rankings`.

    Raises LookalikeError for a k larger than the number of images that every query may find, and if a query is in the
    gallery that the refinement was fitted on.
    """
    check_fair(split, ks, [name for name in ("pca", "augment") if getattr(refinement.settings, name)])
    codes = np.unique(labels, return_inverse=True)[1].astype(np.int32)  # numbers compare faster than strings
    gallery_codes, own_codes = codes[split.gallery], codes[split.queries]
    sizes = np.bincount(gallery_codes, minlength=codes.max(initial=0) + 1)
    hidden = ((split.exclude >= 0) & (gallery_codes[split.exclude] == own_codes[:, None])).sum(axis=1)
    n_relevant = sizes[own_codes] - hidden  # (Q,)
    ranks = np.arange(1, max(ks) + 1)
    curve_ranks = np.unique(np.geomspace(1, max(split.visible, 1), CURVE_RANKS).round().astype(int))

    def measure(block: Ranking) -> dict[str, np.ndarray]:
        found = {"rows": block.rows[:, :FIRST], "cosines": block.cosines[:, :FIRST]}
        if split.unmeasurable:
            return found
        relevant = gallery_codes[block.rows] == own_codes[block.queries, None]  # (B, G)
        relevant &= np.isfinite(block.cosines)  # excluded images are never hits
        total = n_relevant[block.queries]
        hits = np.cumsum(relevant, axis=1)
        at_ranks = hits[:, curve_ranks - 1]
        return found | {
            "figures": np.stack(list(_figures(relevant, total, ks).values()), axis=1),
            "curve": metrics.interpolated_precision(relevant, total, RECALL_LEVELS),
            "recall_by_rank": at_ranks / total[:, None],
            "precision_by_rank": at_ranks / curve_ranks,
            "recall": hits[:, : max(ks)] / total[:, None],
            "best_possible": np.minimum(ranks, total[:, None]) / total[:, None],
        }

    blocks = list(map_rankings(measure, refinement, features[split.queries], gallery, split.exclude, memory, mix))
    found = {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else {})}
    rows = found.get("rows", np.zeros((0, 0), np.int64))
    measured = "figures" in found
    names = list(_figures(np.zeros((1, max(ks)), bool), np.ones(1, int), ks))
    table = pd.DataFrame(found["figures"] if measured else np.zeros((0, len(names))), columns=names)
    own = split.queries if measured else split.queries[:0]
    table.insert(0, "label", labels[own])
    table.insert(1, "R", n_relevant[: len(own)])
    table.insert(2, "first", labels[split.gallery[rows[: len(own), 0]]] if measured else labels[own])

    def means(x: str, levels: np.ndarray, **columns: str) -> pd.DataFrame:
        if not measured:
            return pd.DataFrame(columns=[x, *columns])
        return pd.DataFrame({x: levels} | {name: found[key].mean(axis=0) for name, key in columns.items()})

    return Evaluation(
        per_query=table,
        by_class=_by_class(table, labels[split.gallery]),
        curve=means("recall", RECALL_LEVELS.round(2), precision="curve"),
        curve_by_rank=means("k", curve_ranks, recall="recall_by_rank", precision="precision_by_rank"),
        recall=means("k", ranks, recall="recall", best_possible="best_possible"),
        rows=rows,
        cosines=found.get("cosines", np.zeros((0, 0), np.float32)),
    )


def with_intervals(result: Evaluation, raw: Evaluation, resamples: int, seed: int) -> pd.DataFrame:
    """Compute every figure over all queries with its 95 % interval, and its gain over raw cosine, query by query.

    Columns: figure, value, low, high, raw, gain, gain_low, gain_high; gain = value - raw, with the interval
    of the paired differences. mAP_class_mean weights every class equally, all other figures every query.
    """
    columns = ["figure", "value", "low", "high", "raw", "gain", "gain_low", "gain_high"]
    labels = result.per_query["label"].to_numpy()
    rows = []
    names = [name for name in result.per_query.columns if name not in ("label", "R", "first")] if len(labels) else []
    for name, by_class in [(name, False) for name in names] + [("AP", True)] * bool(names):
        values, raws = result.per_query[name].to_numpy(), raw.per_query[name].to_numpy()
        own = interval(values, labels, resamples, seed, by_class=by_class)
        gain = interval(values - raws, labels, resamples, seed, by_class=by_class)
        figure = "mAP_class_mean" if by_class else mean_name(name)
        rows.append((figure, own.mean, own.low, own.high, own.mean - gain.mean, gain.mean, gain.low, gain.high))
    return pd.DataFrame(rows, columns=columns)


def means(result: Evaluation) -> dict[str, float]:
    """Compute the mean of every figure over all queries, by name."""
    figures = result.per_query.drop(columns=["label", "R", "first"]).mean().rename(mean_name)
    return {**figures.to_dict(), "mAP_class_mean": float(result.by_class["mAP"].mean())}


def images_per_class(labels: np.ndarray, split: Split) -> pd.DataFrame:
    """Count the images of each class: class, images, gallery, queries; largest class first, then by name."""
    table = pd.DataFrame({"class": labels, "images": 1, "gallery": 0, "queries": 0})
    table.loc[split.gallery, "gallery"] = 1
    table.loc[split.queries, "queries"] = 1
    counts = table[table["class"] != ""].groupby("class", as_index=False).sum()
    return counts.sort_values(["images", "class"], ascending=[False, True], ignore_index=True)


def _figures(relevant: np.ndarray, n_relevant: np.ndarray, ks: list[int]) -> dict[str, np.ndarray]:
    """Compute every figure of each query, by name; AP first."""
    figures = {"AP": metrics.average_precision(relevant, n_relevant)}
    figures |= {f"P@{k}": metrics.precision_at_k(relevant, k) for k in ks}
    figures |= {f"R@{k}": metrics.recall_at_k(relevant, n_relevant, k) for k in ks}
    figures |= {f"Top-{k}": metrics.hit_at_k(relevant, k) for k in ks}
    figures |= {f"AP@{k}": metrics.average_precision_at_k(relevant, n_relevant, k) for k in ks}
    figures |= {f"NDCG@{k}": metrics.ndcg_at_k(relevant, n_relevant, k) for k in ks}
    figures["R-precision"] = metrics.r_precision(relevant, n_relevant)
    figures["AP@R"] = metrics.average_precision_at_r(relevant, n_relevant)
    figures["RR"] = metrics.reciprocal_rank(relevant)
    return figures


def mean_name(figure: str) -> str:
    """Return the name of a figure's mean over queries.

    >>> [mean_name(name) for name in ("AP", "AP@10", "RR", "P@1")]
    ['mAP', 'mAP@10', 'MRR', 'P@1']
    """
    return "MRR" if figure == "RR" else f"m{figure}" if figure.startswith("AP") else figure


def _by_class(per_query: pd.DataFrame, gallery_labels: np.ndarray) -> pd.DataFrame:
    means = per_query.drop(columns=["R", "first"]).groupby("label").mean().rename(columns=mean_name)
    means.insert(0, "queries", per_query.groupby("label").size())
    means.insert(1, "gallery", pd.Series(gallery_labels).value_counts().reindex(means.index))
    return means.reset_index(names="class").sort_values(["mAP", "class"], ignore_index=True)
