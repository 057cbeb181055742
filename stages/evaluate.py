"""Measure how good the search is.

Reads   data/features                   what is searched
        data/index                      the settings of the index that ships
        data/processed                  the files' hashes, which decide the split, and pictures for the examples
Writes  metrics/metrics.json            mAP, P@k, R@k, Top-k over all queries; P@10 through the kind that ships
        plots/per_class.csv             the same for each class, hardest first
        plots/images_per_class.csv      class, images, gallery, queries
        plots/precision_recall.csv      recall, precision: interpolated, mean over queries
        plots/recall_at_k.csv           k, recall
        plots/*.png                     each as a figure; examples.png: queries from best to worst, and what they found

Queries are held out of the gallery (section protocol). The gallery is indexed anew here, in memory, with the settings
of data/index, so that no query is in what it is searched against.

    python stages/evaluate.py data/features data/index data/processed metrics/metrics.json plots
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike import evaluation, indexes, metrics, params, plots, protocol, stage
from lookalike.collection import check_same_images, load_collection, load_images
from lookalike.errors import LookalikeError
from lookalike.files import new_file, write_json
from lookalike.refine import unit_length

SHIPPED_K = 10


def ascending(ranks: list[int]) -> list[int]:
    """Check that each rank is listed once, smallest first."""
    if sorted(set(ranks)) != ranks:
        raise ValueError("list each rank once, smallest first")
    return ranks


class Settings(params.Section):
    """Section `evaluate` of params.yaml."""

    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1), AfterValidator(ascending)]
    examples: Annotated[int, Field(ge=1, le=50)]


def main() -> None:
    """Read the arguments, split, search, measure, draw."""
    parser = stage.parser(__doc__)
    parser.add_argument("features", type=Path, help="what extract wrote")
    parser.add_argument("index", type=Path, help="what index wrote")
    parser.add_argument("processed", type=Path, help="what preprocess wrote")
    parser.add_argument("metrics", type=Path, help="JSON file to write")
    parser.add_argument("plots", type=Path, help="folder to write tables and figures into")
    args = parser.parse_args()
    settings = params.load(args.params, "evaluate", Settings)
    protocol_settings = params.load(args.params, "protocol", protocol.Settings)
    collection, images = load_collection(args.features), load_images(args.processed)
    check_same_images(images, collection)
    labels = collection.labels

    split = protocol.split(collection.paths, labels, images.sha256, protocol_settings)
    for note in split.notes:
        stage.notice("evaluate", note)
    report: dict[str, Any] = {"queries": len(split.queries), "gallery": len(split.gallery)}
    vectors = unit_length(collection.features)
    if split.unmeasurable:
        stage.notice("evaluate", f"quality cannot be measured: {split.unmeasurable}")
        report |= {"queries": 0, "unmeasurable": split.unmeasurable}
    elif max(settings.k) > len(split.gallery):
        raise LookalikeError(
            f"evaluate.k has {max(settings.k)}, but the gallery has {len(split.gallery)} images; lower it"
        )
    result = evaluation.evaluate(vectors, labels, split, settings.k)
    if not split.unmeasurable:
        report |= evaluation.summary(result, settings.k)
        report |= shipped_precision(vectors, labels, split, indexes.load_settings(args.index))

    counts = evaluation.images_per_class(labels, split)
    write_csv(result.by_class, args.plots / "per_class.csv")
    write_csv(counts, args.plots / "images_per_class.csv")
    write_csv(result.curve, args.plots / "precision_recall.csv")
    write_csv(result.recall, args.plots / "recall_at_k.csv")
    draw(result, counts, split, args.plots)
    plots.example_queries(
        examples(result, split, images.pixels, labels, settings.examples), args.plots / "examples.png"
    )
    write_json(args.metrics, {key: round(value, 6) if isinstance(value, float) else value
                              for key, value in report.items()})  # fmt: skip
    if not split.unmeasurable:
        stage.notice("evaluate", f"mAP {report['mAP']:.3f}, P@{settings.k[0]} {report[f'P@{settings.k[0]}']:.3f}, "
                                 f"{report['queries']} queries in a gallery of {report['gallery']}")  # fmt: skip


def shipped_precision(
    vectors: np.ndarray, labels: np.ndarray, split: protocol.Split, settings: indexes.Settings
) -> dict[str, float]:
    """P@10 through the kind of index that ships: its distance from the exact P@10 is what approximation costs."""
    index = indexes.build(vectors[split.gallery], settings)
    k = min(SHIPPED_K, len(index))
    _, rows = index.search(vectors[split.queries], k)
    relevant = labels[split.gallery][rows] == labels[split.queries][:, None]  # (Q, k)
    return {f"P@{k}_{index.kind}": float(metrics.precision_at_k(relevant, k).mean())}


def draw(result: evaluation.Evaluation, counts: pd.DataFrame, split: protocol.Split, folder: Path) -> None:
    """Draw each table, or the reason why it is empty."""
    if split.unmeasurable:
        for name in ("precision_recall", "recall_at_k"):
            plots.message(f"Quality cannot be measured:\n{split.unmeasurable}.", folder / f"{name}.png")
    else:
        mean_ap, queries = float(result.per_query["AP"].mean()), len(result.per_query)
        plots.precision_recall(result.curve, mean_ap, queries, folder / "precision_recall.png")
        plots.recall_at_k(result.recall, folder / "recall_at_k.png")
    if len(counts):
        plots.images_per_class(counts, folder / "images_per_class.png")
    else:
        plots.message("The images have no labels.", folder / "images_per_class.png")


def examples(
    result: evaluation.Evaluation, split: protocol.Split, pixels: np.ndarray, labels: np.ndarray, most: int
) -> list[plots.Example]:
    """Queries spread evenly from the best average precision to the worst, with what they found."""
    count = len(split.queries)
    order = np.arange(count) if split.unmeasurable else np.argsort(-result.per_query["AP"].to_numpy(), kind="stable")
    chosen = order[np.linspace(0, count - 1, min(most, count)).round().astype(int)]
    found = []
    for query in chosen.tolist():
        row = split.queries[query]
        hits = [
            plots.Hit(
                pixels[hit], labels[hit], cosine, None if split.unmeasurable else bool(labels[hit] == labels[row])
            )
            for hit, cosine in zip(split.gallery[result.rows[query]], result.cosines[query], strict=True)
        ]
        average_precision = None if split.unmeasurable else float(result.per_query["AP"][query])
        found.append(plots.Example(pixels[row], labels[row], average_precision, hits))
    return found


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table, its figures rounded to six digits."""
    with new_file(path) as partial:
        table.round(6).to_csv(partial, index=False, lineterminator="\n")


if __name__ == "__main__":
    stage.run("evaluate", main)
