"""Figures of metrics.json: measured over the protocol's split, over more seeds, and through the index that ships."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from msgspec.structs import replace

from lookalike.artifacts.arrays import Collection
from lookalike.evaluation import measure as evaluation
from lookalike.evaluation import metrics, protocol, tag_fusion
from lookalike.evaluation.measure import Evaluation
from lookalike.evaluation.protocol import Split
from lookalike.index import tags
from lookalike.index.searcher import Searcher
from lookalike.refinement.refinement import Refinement
from lookalike.refinement.refinement import Settings as RefineSettings
from lookalike.report.settings import Settings

SHIPPED_K = 10


BLOCK = 256  # queries searched at a time


HEADLINE = ["P@1", "P@10", "R@10", "Top-5", "Top-10", "NDCG@10", "MRR"]  # those of them that `evaluate.k` includes


def fit_and_measure(
    features: np.ndarray, labels: np.ndarray, split: Split, refine: RefineSettings, settings: Settings
) -> Evaluation:
    """Fit a refinement on the gallery, then rank and measure it."""
    refinement = Refinement.fit(features[split.gallery], refine)
    return measure(features, labels, split, refinement, refinement.gallery(features[split.gallery]), settings)


def measure(
    features: np.ndarray, labels: np.ndarray, split: Split, refinement: Refinement, gallery: np.ndarray,
    settings: Settings,
) -> Evaluation:  # fmt: skip
    """Rank and measure a refined gallery, float32 (N, d)."""
    return evaluation.evaluate(features, labels, split, refinement, gallery, settings.k, settings.memory << 20)


def figures_of(table: pd.DataFrame) -> dict[str, Any]:
    """Select the headline from the table of all figures: few, because each is a column of `dvc exp show`."""
    rows = table.set_index("figure")
    columns = {"": "value", "_low": "low", "_high": "high", "_raw": "raw", "_seeds_mean": "seeds_mean",
               "_seeds_sd": "seeds_sd"}  # fmt: skip
    figures = {f"mAP{suffix}": float(rows.loc["mAP", column]) for suffix, column in columns.items()}
    figures["mAP_class_mean"] = float(rows.loc["mAP_class_mean", "value"])
    figures |= {name: float(rows.loc[name, "value"]) for name in HEADLINE if name in rows.index}
    if "P@1" in rows.index:
        figures["P@1_raw"] = float(rows.loc["P@1", "raw"])
    return {name: value for name, value in figures.items() if np.isfinite(value)}  # with one split there is no spread


def shipped(searcher: Searcher, kind: str, features: np.ndarray, labels: np.ndarray, split: Split) -> dict[str, float]:
    """Measure P@10 through the kind of index that ships. Exact P@10 minus this is the cost of approximation."""
    k = min(SHIPPED_K, len(searcher.index))
    found = []
    for start in range(0, len(split.queries), BLOCK):
        block = slice(start, start + BLOCK)
        _, rows = searcher.search(features[split.queries[block]], k, split.exclude[block])
        found.append((labels[split.gallery][rows] == labels[split.queries[block]][:, None]) & (rows >= 0))  # (B, k)
    return {f"P@{k}_{kind}": float(metrics.precision_at_k(np.concatenate(found), k).mean())}


def with_tags(
    index: Path, collection: Collection, split: Split, refinement: Refinement, gallery: np.ndarray, settings: Settings
) -> dict[str, float]:
    """Measure mAP with each query's own words beside its picture, if it has any; empty for an index without tags."""
    words, paths = tags.load(index), collection.paths
    if words is None or not words.weight:
        return {}
    texts = tags.load_texts(index)
    mix = tag_fusion.mix_words(texts, words.weight, paths[split.queries], paths[split.gallery])
    if mix is None:
        return {}
    result = evaluation.evaluate(
        collection.features, collection.labels, split, refinement, gallery, settings.k, settings.memory << 20, mix
    )
    return {"mAP_tags": float(result.per_query["AP"].mean())}


def over_seeds(
    result: Evaluation, paths: np.ndarray, features: np.ndarray, labels: np.ndarray, sha256: np.ndarray,
    protocol_settings: protocol.Settings, refine: RefineSettings, settings: Settings,
) -> pd.DataFrame:  # fmt: skip
    """Measure over split seeds, counted up from the protocol's: figure, seeds_mean, seeds_sd; no row for one split.

    result  that of the first seed, the protocol's own.
    """
    if protocol_settings.kind != "holdout" or settings.split_seeds < 2:
        return pd.DataFrame(columns=["figure", "seeds_mean", "seeds_sd"])
    values = [evaluation.means(result)]
    for seed in range(protocol_settings.seed + 1, protocol_settings.seed + settings.split_seeds):
        split = protocol.split(paths, labels, sha256, replace(protocol_settings, seed=seed))
        values.append(evaluation.means(fit_and_measure(features, labels, split, refine, settings)))
    table = pd.DataFrame(values)
    return pd.DataFrame({"seeds_mean": table.mean(), "seeds_sd": table.std()}).rename_axis("figure").reset_index()


def caveats(result: Evaluation, table: pd.DataFrame) -> list[str]:
    """Return warnings, one line each, about figures that could mislead a reader."""
    found = []
    single = int((result.by_class["queries"] == 1).sum())
    if single:
        found.append(
            f"{single} of {len(result.by_class)} classes have one query, which resampling within the class cannot "
            "vary: the 95 % intervals are too narrow"
        )
    gain = table.set_index("figure").loc["mAP"]
    if gain["gain_high"] < 0:
        found.append(
            f"index.refine lowers mAP here, by {-gain['gain']:.3f}; to see the effect of each part: "
            "python benchmarks/refinement.py --ablation"
        )
    return found
