"""Measure how good the search is.

Reads   data/features                   what is searched
        data/index                      the settings of the index that ships
        data/processed                  the files' hashes, which decide the split, and pictures
        data/*.json                     the other stages' traces, for the report's last lines
Writes  metrics/metrics.json            the headline: mAP, its interval, what raw cosine gives, P@1, P@10, ...
        plots/figures.csv               every figure with its 95 % interval, and its gain over raw cosine with one
        plots/per_class.csv             every figure of each class, hardest first
        plots/per_query.csv             every figure of each query
        plots/*.csv, plots/*.png        curves, counts, confusions, near-duplicates, a map of the gallery
        plots/examples.png, worst.png   queries and what they found
        plots/report.html               all of it on one page

Queries are held out of the gallery (section protocol). Refinement and index are fitted anew here, in memory, on the
gallery alone, with the settings of data/index, so that nothing fitted has seen a query.

    python stages/evaluate.py data/features data/index data/processed metrics/metrics.json plots --traces data
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from msgspec import Meta
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike import evaluation, indexes, looks, metrics, params, plots, protocol, report, stage, tags
from lookalike.collection import Collection, check_same_images, load_collection, load_images
from lookalike.evaluation import Evaluation
from lookalike.files import new_files, write_json
from lookalike.protocol import Split
from lookalike.refine import OFF, Refinement
from lookalike.refine import Settings as RefineSettings
from lookalike.searcher import Searcher

SHIPPED_K = 10
BLOCK = 256  # queries searched at a time
HEADLINE = ["P@1", "P@10", "R@10", "Top-5", "Top-10", "NDCG@10", "MRR"]  # of those that `k` asks for
NEAR_DUPLICATES = 20  # pairs listed


class Settings(params.Section, frozen=True):
    """Section `evaluate` of params.yaml."""

    k: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=1)]
    resamples: Annotated[int, Meta(ge=100, le=100_000)]
    split_seeds: Annotated[int, Meta(ge=1, le=100)]
    seed: Annotated[int, Meta(ge=0, lt=2**32)]
    memory: Annotated[int, Meta(ge=16)]
    examples: Annotated[int, Meta(ge=1, le=50)]
    worst: Annotated[int, Meta(ge=1, le=50)]
    map_images: Annotated[int, Meta(ge=10, le=20_000)]

    def __post_init__(self) -> None:
        """Check what one value cannot show: that each rank is listed once, smallest first."""
        if sorted(set(self.k)) != self.k:
            raise ValueError(f"k is {self.k}: list each rank once, smallest first")


def main() -> None:
    """Read the arguments, split, search, measure, draw."""
    parser = stage.parser(__doc__)
    parser.add_argument("features", type=Path, help="what extract wrote")
    parser.add_argument("index", type=Path, help="what index wrote")
    parser.add_argument("processed", type=Path, help="what preprocess wrote")
    parser.add_argument("metrics", type=Path, help="JSON file to write")
    parser.add_argument("plots", type=Path, help="folder to write tables, figures and the report into")
    parser.add_argument("--traces", type=Path, help="folder of the other stages' small JSON files, for the report")
    args = parser.parse_args()
    settings = params.load(args.params, "evaluate", Settings)
    protocol_settings = params.load(args.params, "protocol", protocol.Settings)
    plan = indexes.load_plan(args.index)
    collection, images = load_collection(args.features), load_images(args.processed)
    check_same_images(images, collection)
    features, labels = collection.features, collection.labels

    split = protocol.split(collection.paths, labels, images.sha256, protocol_settings)
    for note in split.notes:
        stage.notice("evaluate", note)
    refinement = Refinement.fit(features[split.gallery], plan.refine)
    gallery = refinement.gallery(features[split.gallery])
    result = measure(features, labels, split, refinement, gallery, settings)
    raw = fit_and_measure(features, labels, split, OFF, settings)
    table = evaluation.with_intervals(result, raw, settings.resamples, settings.seed)
    headline: dict[str, Any] = {
        "queries": len(split.queries), "gallery": len(split.gallery), "images": len(collection.paths)
    }  # fmt: skip
    if split.unmeasurable:
        stage.notice("evaluate", f"quality cannot be measured: {split.unmeasurable}")
        headline |= {"queries": 0, "unmeasurable": split.unmeasurable}
    else:
        spread = over_seeds(
            result, collection.paths, features, labels, images.sha256, protocol_settings, plan.refine, settings
        )
        table = table.merge(spread, on="figure", how="left")
        warn(result, table)
        index = plan.build(gallery)
        searcher = Searcher(refinement, index)
        headline = figures_of(table) | shipped(searcher, index.kind, features, labels, split) | headline
        headline |= with_tags(args.index, collection, split, refinement, gallery, settings)
        stage.notice("evaluate", f"mAP {headline['mAP']:.3f} (raw cosine {headline['mAP_raw']:.3f}), "
                                 f"{len(split.queries)} queries in a gallery of {len(split.gallery)}")  # fmt: skip

    queries = result.per_query.assign(path=collection.paths[split.queries[: len(result.per_query)]])
    tables = {
        "figures": table,
        "per_class": result.by_class,
        "per_query": queries[["path", *result.per_query.columns]],
        "images_per_class": evaluation.images_per_class(labels, split),
        "precision_recall": result.curve.assign(raw_cosine=raw.curve["precision"]),
        "precision_recall_by_rank": result.curve_by_rank,
        "recall_at_k": result.recall,
        "confusion": looks.confusions(result, settings.worst),
        "near_duplicates": looks.near_duplicates(
            features, collection.paths, labels, images.sha256, NEAR_DUPLICATES, settings.seed
        ),
        "map": looks.gallery_map(gallery, labels[split.gallery], settings.map_images, settings.seed),
    }  # fmt: skip
    with new_files(args.plots, "evaluate") as folder:
        for name, content in tables.items():
            content.round(6).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        draw(result, tables, split, images.pixels, labels, settings, folder)
        report.write_evaluation(folder, tables, headline, args.traces)
    write_json(args.metrics, {key: round(value, 6) if isinstance(value, float) else value
                              for key, value in headline.items()})  # fmt: skip


def warn(result: Evaluation, table: pd.DataFrame) -> None:
    """Say what a reader of the figures would be misled by."""
    single = int((result.by_class["queries"] == 1).sum())
    if single:
        stage.notice("evaluate", f"{single} of {len(result.by_class)} classes have one query, which resampling within "
                                 "the class cannot vary: the 95 % intervals are too narrow")  # fmt: skip
    gain = table.set_index("figure").loc["mAP"]
    if gain["gain_high"] < 0:
        stage.notice("evaluate", f"index.refine lowers mAP here, by {-gain['gain']:.3f}; see what each part does: "
                                 "python benchmarks/refinement.py --ablation")  # fmt: skip


def fit_and_measure(
    features: np.ndarray, labels: np.ndarray, split: Split, refine: RefineSettings, settings: Settings
) -> Evaluation:
    """Fit a refinement on the gallery, then rank and measure."""
    refinement = Refinement.fit(features[split.gallery], refine)
    return measure(features, labels, split, refinement, refinement.gallery(features[split.gallery]), settings)


def measure(
    features: np.ndarray, labels: np.ndarray, split: Split, refinement: Refinement, gallery: np.ndarray,
    settings: Settings,
) -> Evaluation:  # fmt: skip
    """Rank and measure a gallery, float32 (N, d), that the refinement made."""
    return evaluation.evaluate(features, labels, split, refinement, gallery, settings.k, settings.memory << 20)


def figures_of(table: pd.DataFrame) -> dict[str, Any]:
    """The headline from the table of all figures: few, because each is a column of `dvc exp show`."""
    rows = table.set_index("figure")
    columns = {"": "value", "_low": "low", "_high": "high", "_raw": "raw", "_seeds_mean": "seeds_mean",
               "_seeds_sd": "seeds_sd"}  # fmt: skip
    figures = {f"mAP{suffix}": float(rows.loc["mAP", column]) for suffix, column in columns.items()}
    figures["mAP_class_mean"] = float(rows.loc["mAP_class_mean", "value"])
    figures |= {name: float(rows.loc[name, "value"]) for name in HEADLINE if name in rows.index}
    if "P@1" in rows.index:
        figures["P@1_raw"] = float(rows.loc["P@1", "raw"])
    return {name: value for name, value in figures.items() if np.isfinite(value)}  # one split has no spread


def shipped(searcher: Searcher, kind: str, features: np.ndarray, labels: np.ndarray, split: Split) -> dict[str, float]:
    """P@10 through the kind of index that ships: its distance from the exact P@10 is what approximation costs."""
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
    """What mAP is with each query's own words beside its picture, if it has some; nothing for an index without."""
    words, paths = tags.load(index), collection.paths
    if words is None or not words.weight:
        return {}
    texts = tags.load_texts(index)
    mix = evaluation.mix_words(texts, words.weight, paths[split.queries], paths[split.gallery])
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
    """figure, seeds_mean, seeds_sd: over split seeds counted up from the protocol's; no row if there is one split.

    result  what the first of them, the protocol's own, gave.
    """
    if protocol_settings.kind != "holdout" or settings.split_seeds < 2:
        return pd.DataFrame(columns=["figure", "seeds_mean", "seeds_sd"])
    values = [evaluation.means(result)]
    for seed in range(protocol_settings.seed + 1, protocol_settings.seed + settings.split_seeds):
        split = protocol.split(paths, labels, sha256, replace(protocol_settings, seed=seed))
        values.append(evaluation.means(fit_and_measure(features, labels, split, refine, settings)))
    table = pd.DataFrame(values)
    return pd.DataFrame({"seeds_mean": table.mean(), "seeds_sd": table.std()}).rename_axis("figure").reset_index()


def draw(
    result: Evaluation, tables: dict[str, pd.DataFrame], split: Split, pixels: np.ndarray, labels: np.ndarray,
    settings: Settings, folder: Path,
) -> None:  # fmt: skip
    """Draw each table, or the reason why there is nothing to draw."""
    if split.unmeasurable:
        for name in ("precision_recall", "recall_at_k", "average_precision", "worst"):
            plots.message(f"Quality cannot be measured:\n{split.unmeasurable}.", folder / f"{name}.png")
    else:
        mean_ap, queries = float(result.per_query["AP"].mean()), len(result.per_query)
        plots.precision_recall(
            tables["precision_recall"], result.curve_by_rank, mean_ap, queries, folder / "precision_recall.png"
        )
        plots.recall_at_k(result.recall, folder / "recall_at_k.png")
        plots.average_precision(result.per_query, folder / "average_precision.png")
        worst = looks.examples(looks.worst(result, settings.worst), result, split, pixels, labels)
        plots.example_queries(worst, "The queries with the lowest average precision (AP)", folder / "worst.png")
    if len(tables["images_per_class"]):
        plots.images_per_class(tables["images_per_class"], folder / "images_per_class.png")
    else:
        plots.message("The images have no labels.", folder / "images_per_class.png")
    if len(tables["map"]):
        plots.gallery_map(tables["map"], folder / "map.png")
    else:
        plots.message("The gallery has too few images for a map.", folder / "map.png")
    spread = looks.examples(looks.spread(result, split, settings.examples), result, split, pixels, labels)
    title = "Queries and what they found" if split.unmeasurable else \
        "Queries from the best average precision (AP) to the worst, and what they found"  # fmt: skip
    plots.example_queries(spread, title, folder / "examples.png")


if __name__ == "__main__":
    stage.run("evaluate", main)
