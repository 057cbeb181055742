"""Measure the retrieval quality, with held-out queries.

Reads   data/features                   embeddings, paths and labels
        data/index                      the settings of the index
        data/processed                  the files' hashes, which decide the split, and pictures
        data/*.json                     the other stages' traces, for the report's last lines
Writes  metrics/metrics.json            the most important figures: mAP, its interval, raw cosine's mAP, P@1, P@10, ...
        plots/figures.csv               every figure and its gain over raw cosine, with 95 % intervals
        plots/per_class.csv             every figure of each class, hardest first
        plots/per_query.csv             every figure of each query
        plots/*.csv, plots/*.png        curves, counts, confusions, near-duplicates, a map of the gallery
        plots/examples.png, worst.png   queries and their hits
        plots/report.html               all of it on one page

Queries are held out of the gallery (section protocol). Refinement and index are fitted again here, in memory, on the
gallery only, with the settings of data/index, so that nothing is fitted to a query.

    python stages/evaluate.py data/features data/index data/processed metrics/metrics.json plots --traces data
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import check_same_images, load_collection, load_images
from lookalike.base import params, script
from lookalike.base.files import new_files, write_json
from lookalike.evaluation import measure as evaluation
from lookalike.evaluation import protocol
from lookalike.index import files
from lookalike.index.searcher import Searcher
from lookalike.refinement.refinement import OFF, Refinement
from lookalike.report import diagnostics, page
from lookalike.report.figures import draw
from lookalike.report.headline import caveats, figures_of, fit_and_measure, measure, over_seeds, shipped, with_tags
from lookalike.report.settings import Settings

NEAR_DUPLICATES = 20  # number of pairs listed


def main() -> None:
    """Read the arguments, then split, search, measure and draw."""
    parser = script.parser(__doc__)
    parser.add_argument("features", type=Path, help="output folder of extract")
    parser.add_argument("index", type=Path, help="output folder of index")
    parser.add_argument("processed", type=Path, help="output folder of preprocess")
    parser.add_argument("metrics", type=Path, help="JSON file to write")
    parser.add_argument("plots", type=Path, help="folder to write tables, figures and the report into")
    parser.add_argument("--traces", type=Path, help="folder of the other stages' small JSON files, for the report")
    args = parser.parse_args()
    settings = params.load(args.params, "evaluate", Settings)
    protocol_settings = params.load(args.params, "protocol", protocol.Settings)
    plan = files.load_plan(args.index)
    collection, images = load_collection(args.features), load_images(args.processed)
    check_same_images(images, collection)
    features, labels = collection.features, collection.labels

    split = protocol.split(collection.paths, labels, images.sha256, protocol_settings)
    for note in split.notes:
        script.notice("evaluate", note)
    refinement = Refinement.fit(features[split.gallery], plan.refine)
    gallery = refinement.gallery(features[split.gallery])
    result = measure(features, labels, split, refinement, gallery, settings)
    raw = fit_and_measure(features, labels, split, OFF, settings)
    table = evaluation.with_intervals(result, raw, settings.resamples, settings.seed)
    headline: dict[str, Any] = {
        "queries": len(split.queries),
        "gallery": len(split.gallery),
        "images": len(collection.paths),
    }
    if split.unmeasurable:
        script.notice("evaluate", f"quality cannot be measured: {split.unmeasurable}")
        headline |= {"queries": 0, "unmeasurable": split.unmeasurable}
    else:
        spread = over_seeds(
            result, collection.paths, features, labels, images.sha256, protocol_settings, plan.refine, settings
        )
        table = table.merge(spread, on="figure", how="left")
        for caveat in caveats(result, table):
            script.notice("evaluate", caveat)
        index = plan.build(gallery)
        searcher = Searcher(refinement, index)
        headline = figures_of(table) | shipped(searcher, index.kind, features, labels, split) | headline
        headline |= with_tags(args.index, collection, split, refinement, gallery, settings)
        script.notice(
            "evaluate",
            f"mAP {headline['mAP']:.3f} (raw cosine {headline['mAP_raw']:.3f}), "
            f"{len(split.queries)} queries in a gallery of {len(split.gallery)}",
        )

    queries = result.per_query.assign(path=collection.paths[split.queries[: len(result.per_query)]])
    tables = {
        "figures": table,
        "per_class": result.by_class,
        "per_query": queries[["path", *result.per_query.columns]],
        "images_per_class": evaluation.images_per_class(labels, split),
        "precision_recall": result.curve.assign(raw_cosine=raw.curve["precision"]),
        "precision_recall_by_rank": result.curve_by_rank,
        "recall_at_k": result.recall,
        "confusion": diagnostics.confusions(result, settings.worst),
        "near_duplicates": diagnostics.near_duplicates(
            features, collection.paths, labels, images.sha256, NEAR_DUPLICATES, settings.seed
        ),
        "map": diagnostics.gallery_map(gallery, labels[split.gallery], settings.map_images, settings.seed),
    }
    with new_files(args.plots, "evaluate") as folder:
        for name, content in tables.items():
            content.round(6).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        draw(result, tables, split, images.pixels, labels, settings, folder)
        page.write_evaluation(folder, tables, headline, args.traces)
    rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in headline.items()}
    write_json(args.metrics, rounded)


if __name__ == "__main__":
    script.run("evaluate", main)
