"""Drawing of the figures of an evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd

from lookalike.evaluation.measure import Evaluation
from lookalike.evaluation.protocol import Split
from lookalike.report import diagnostics, plots
from lookalike.report.settings import Settings


def draw(
    result: Evaluation, tables: dict[str, pd.DataFrame], split: Split, pixels: np.ndarray, labels: np.ndarray,
    settings: Settings, folder: Path,
) -> None:  # fmt: skip
    """Draw a figure for each table, or a figure that says why there is nothing to draw."""
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
        worst = diagnostics.examples(diagnostics.worst(result, settings.worst), result, split, pixels, labels)
        plots.example_queries(worst, "The queries with the lowest average precision (AP)", folder / "worst.png")
    if len(tables["images_per_class"]):
        plots.images_per_class(tables["images_per_class"], folder / "images_per_class.png")
    else:
        plots.message("The images have no labels.", folder / "images_per_class.png")
    if len(tables["map"]):
        plots.gallery_map(tables["map"], folder / "map.png")
    else:
        plots.message("The gallery has too few images for a map.", folder / "map.png")
    spread = diagnostics.examples(diagnostics.spread(result, split, settings.examples), result, split, pixels, labels)
    title = "Queries and what they found" if split.unmeasurable else \
        "Queries from the best average precision (AP) to the worst, and what they found"  # fmt: skip
    plots.example_queries(spread, title, folder / "examples.png")
