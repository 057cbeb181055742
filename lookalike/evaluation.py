"""Measuring a gallery with its queries: a row of figures a query, a class, and for all."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lookalike import metrics
from lookalike.protocol import Split
from lookalike.ranking import rank

RECALL_LEVELS = np.linspace(0, 1, 101)
FIRST = 10  # hits kept of each query, to be looked at


@dataclass(frozen=True)
class Evaluation:
    """What the queries found. Where quality cannot be measured, tables have their columns and no row.

    per_query  one row a query: label, relevant (R), P@k, R@k, Top-k, AP.
    by_class   one row a class: queries, gallery, and the mean of each figure; hardest first (lowest mAP, then name).
    curve      recall, precision: the mean of the queries' interpolated precision-recall curves.
    recall     k, recall, best_possible: mean R@k for every k up to the largest asked for, and a perfect ranking's.
    rows       int64, (Q, up to 10): gallery rows of the first hits.
    cosines    float32, likewise.
    """

    per_query: pd.DataFrame
    by_class: pd.DataFrame
    curve: pd.DataFrame
    recall: pd.DataFrame
    rows: np.ndarray
    cosines: np.ndarray


def evaluate(vectors: np.ndarray, labels: np.ndarray, split: Split, ks: list[int]) -> Evaluation:
    """Rank the gallery for every query, exactly, and measure the rankings.

    vectors  float32, (N, D), unit length.
    labels   str, (N,). A gallery image is relevant to a query if it carries the query's label.
    ks       ranks for P@k, R@k and Top-k, each at most the size of the gallery.
    """
    gallery_labels = labels[split.gallery]
    ranks = np.arange(1, max(ks) + 1)
    per_query, curves, recalls, rows, cosines = [], [], [], [], []
    for block in rank(vectors[split.queries], vectors[split.gallery]):
        rows.append(block.rows[:, :FIRST])
        cosines.append(block.cosines[:, :FIRST])
        if not split.unmeasurable:
            own = labels[split.queries][block.queries]
            relevant = gallery_labels[block.rows] == own[:, None]  # (B, N)
            n_relevant = relevant.sum(axis=1)  # (B,)
            per_query.append(_figures(own, relevant, n_relevant, ks))
            curves.append(metrics.interpolated_precision(relevant, n_relevant, RECALL_LEVELS)[:, :, None])
            found = np.cumsum(relevant[:, : max(ks)], axis=1)  # (B, k)
            possible = np.minimum(ranks, n_relevant[:, None])
            recalls.append(np.stack([found, possible], axis=2) / n_relevant[:, None, None])
    none = np.zeros(0, dtype=bool)
    table = pd.concat(per_query or [_figures(none.astype(str), np.zeros((0, max(ks)), bool), none, ks)])
    return Evaluation(
        per_query=table.reset_index(drop=True),
        by_class=_by_class(table, gallery_labels),
        curve=_mean_curves("recall", RECALL_LEVELS.round(2), ["precision"], curves),
        recall=_mean_curves("k", ranks, ["recall", "best_possible"], recalls),
        rows=np.concatenate(rows) if rows else np.zeros((0, 0), np.int64),
        cosines=np.concatenate(cosines) if cosines else np.zeros((0, 0), np.float32),
    )


def summary(result: Evaluation, ks: list[int]) -> dict[str, float]:
    """The figures for all queries: each query counts the same, but in the class mean each class."""
    figures = {"mAP": result.per_query["AP"].mean(), "mAP_class_mean": result.by_class["mAP"].mean()}
    figures |= {f"{name}@{k}": result.per_query[f"{name}@{k}"].mean() for name in ("P", "R") for k in ks}
    figures |= {f"Top-{k}": result.per_query[f"Top-{k}"].mean() for k in ks}
    return {name: float(value) for name, value in figures.items()}


def images_per_class(labels: np.ndarray, split: Split) -> pd.DataFrame:
    """class, images, gallery, queries; largest class first, then by name."""
    table = pd.DataFrame({"class": labels, "images": 1, "gallery": 0, "queries": 0})
    table.loc[split.gallery, "gallery"] = 1
    table.loc[split.queries, "queries"] = 1
    counts = table[table["class"] != ""].groupby("class", as_index=False).sum()
    return counts.sort_values(["images", "class"], ascending=[False, True], ignore_index=True)


def _figures(labels: np.ndarray, relevant: np.ndarray, n_relevant: np.ndarray, ks: list[int]) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {"label": labels, "relevant": n_relevant}
    columns |= {f"P@{k}": metrics.precision_at_k(relevant, k) for k in ks}
    columns |= {f"R@{k}": metrics.recall_at_k(relevant, n_relevant, k) for k in ks}
    columns |= {f"Top-{k}": metrics.hit_at_k(relevant, k) for k in ks}
    columns["AP"] = metrics.average_precision(relevant, n_relevant)
    return pd.DataFrame(columns)


def _by_class(per_query: pd.DataFrame, gallery_labels: np.ndarray) -> pd.DataFrame:
    means = per_query.drop(columns="relevant").groupby("label").mean().rename(columns={"AP": "mAP"})
    means.insert(0, "queries", per_query.groupby("label").size())
    means.insert(1, "gallery", pd.Series(gallery_labels).value_counts().reindex(means.index))
    return means.reset_index(names="class").sort_values(["mAP", "class"], ignore_index=True)


def _mean_curves(x: str, levels: np.ndarray, names: list[str], curves: list[np.ndarray]) -> pd.DataFrame:
    if not curves:
        return pd.DataFrame(columns=[x, *names])
    means = np.concatenate(curves).mean(axis=0)  # (queries, levels, names) -> (levels, names)
    return pd.DataFrame({x: levels} | {name: means[:, column] for column, name in enumerate(names)})
