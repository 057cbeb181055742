"""Plots of tables, the same bytes in every run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lookalike.base.files import new_file

# Independent of the user's matplotlibrc. A class may be called $_$, which must not be parsed as a formula.
own_style = style.context(["default", {"text.parse_math": False}])
CELL, MARGIN = (1.25, 1.75), 0.08  # inches: a picture with its caption (width, height), and the margin around it
BLUE, GREEN, RED, GREY = "#1f5fa8", "#1b8a4b", "#c0392b", "#8a8f98"


@dataclass(frozen=True)
class Hit:
    """Picture of a hit: pixels uint8 (S, S, 3); `relevant` is None if it is not known."""

    pixels: np.ndarray
    label: str
    cosine: float
    relevant: bool | None


@dataclass(frozen=True)
class Example:
    """Picture of a query, pixels uint8 (S, S, 3), with its hits, best first."""

    pixels: np.ndarray
    label: str
    average_precision: float | None
    hits: list[Hit]


@own_style
def precision_recall(curve: pd.DataFrame, by_rank: pd.DataFrame, mean_ap: float, queries: int, path: Path) -> None:
    """Draw mean interpolated precision at 101 recall levels, that of raw cosine, and the curve rank by rank."""
    figure, axes = _new(5.5, 4.5)
    axes.plot(curve["recall"], curve["precision"], color=BLUE, linewidth=2, label="this search")
    axes.plot(by_rank["recall"], by_rank["precision"], color=BLUE, linewidth=1, linestyle=":", label="not interpolated")
    axes.plot(curve["recall"], curve["raw_cosine"], color=GREY, linestyle="--", label="without refinement (raw cosine)")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Recall", ylabel="Precision (mean over queries)")
    axes.set_title(f"Precision and recall: mAP {mean_ap:.3f}, {queries:,} queries")
    axes.legend(loc="lower left", frameon=False)
    _save(figure, path)


@own_style
def average_precision(per_query: pd.DataFrame, path: Path) -> None:
    """Draw the histogram of the queries' average precision."""
    figure, axes = _new(5.5, 4)
    axes.hist(per_query["AP"], bins=np.linspace(0, 1, 21).tolist(), color=BLUE, edgecolor="white")
    mean = per_query["AP"].mean()
    axes.axvline(mean, color=RED, linestyle="--", label=f"mean (mAP) {mean:.3f}")
    axes.set(xlim=(0, 1), xlabel="Average precision of a query", ylabel="Queries")
    axes.set_title("Average precision of the queries")
    axes.legend(loc="upper left", frameon=False)
    _save(figure, path)


@own_style
def gallery_map(places: pd.DataFrame, path: Path) -> None:
    """Draw the gallery in the plane: the ten largest classes in colour, with their names, all others in grey."""
    figure, axes = _new(7, 6.2)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    named = places[places["class"] != ""]
    largest = named["class"].value_counts().sort_index().sort_values(ascending=False, kind="stable").head(10).index
    others = places[~places["class"].isin(largest)]
    axes.scatter(others["x"], others["y"], s=8, color="#c9ced6", linewidths=0)
    for number, label in enumerate(largest):
        own = places[places["class"] == label]
        colour = f"C{number}"
        axes.scatter(own["x"], own["y"], s=12, color=colour, linewidths=0)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
        centre = own["x"].median(), own["y"].median()
        # Above the centre, so that the label does not hide a small cluster.
        axes.annotate(_short(label), centre, (0, 14), "data", "offset points", ha="center", fontsize=9, bbox=box)
    which = f": the {len(largest)} largest classes in colour" if len(others) and len(largest) else ""
    axes.set_title(f"Map of {len(places):,} gallery images (t-SNE){which}")
    _save(figure, path)


@own_style
def recall_at_k(recall: pd.DataFrame, path: Path) -> None:
    """Draw the mean share of all relevant images among the first k, and that of a perfect ranking."""
    figure, axes = _new(5.5, 4.5)
    axes.plot(recall["k"], recall["recall"], marker="o", markersize=3, label="measured", color=BLUE, linewidth=2)
    axes.plot(recall["k"], recall["best_possible"], color=GREY, linestyle="--", label="best possible")
    axes.set(xlabel="k (images shown)", ylabel="Recall@k (share of all relevant)", ylim=(0, None))
    axes.set_xlim(0.5, recall["k"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Recall among the first k")
    axes.legend(loc="upper left", frameon=False)
    _save(figure, path)


@own_style
def images_per_class(counts: pd.DataFrame, path: Path, most: int = 40) -> None:
    """Draw bars of the largest classes, split into gallery and queries; the title counts all classes."""
    shown = counts.head(most).iloc[::-1]
    figure, axes = _new(6.5, 1.4 + 0.22 * len(shown))
    axes.barh(shown["class"], shown["gallery"], color=BLUE, label="gallery")
    axes.barh(shown["class"], shown["queries"], left=shown["gallery"], color=GREY, label="queries")
    axes.set(xlabel="Images")
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.01)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    left_out = f", the largest {len(shown)} shown" if len(counts) > most else ""
    axes.set_title(f"Images in each of {len(counts)} classes{left_out}")
    _save(figure, path)


@own_style
def example_queries(examples: list[Example], title: str, path: Path) -> None:
    """Draw a row per query: the query, then its hits, framed green (same class) or red, with cosine and class."""
    if not examples:
        message("There is no query: the collection has one image.", path)
        return
    columns = 1 + max(len(example.hits) for example in examples)
    width, height = CELL[0] * columns, CELL[1] * len(examples) + 0.45
    figure = Figure(figsize=(width, height), dpi=100)
    # One pair of axes, in inches from the top left. A pair for each picture takes seconds to lay out.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(width / 2, 0.12, title, ha="center", va="top", fontsize=10)
    for row, example in enumerate(examples):
        top = 0.65 + CELL[1] * row
        _picture(axes, 0, top, example.pixels, f"query\n{_short(example.label) or '(no label)'}", None)
        if example.average_precision is not None:
            axes.text(MARGIN, top - 0.05, f"AP {example.average_precision:.2f}", fontsize=8)
        for column, hit in enumerate(example.hits, start=1):
            colour = None if hit.relevant is None else GREEN if hit.relevant else RED
            mark = "" if hit.relevant is None else " ✓" if hit.relevant else " ✗"  # readable without colour
            caption = f"{hit.cosine:.3f}{mark}\n{_short(hit.label)}"
            _picture(axes, CELL[0] * column, top, hit.pixels, caption, colour)
    axes.set(xlim=(0, width), ylim=(height, 0))  # imshow changed them
    _save(figure, path)


@own_style
def operating_curve(curve: pd.DataFrame, images: int, path: Path) -> None:
    """Draw milliseconds per query against recall, for each method."""
    figure, axes = _new(5.5, 4.5)
    for (method, rows), colour in zip(curve.groupby("method", sort=False), (GREY, BLUE, GREEN, RED), strict=False):
        if len(rows) == 1 and rows["recall"].iloc[0] == 1:  # exact: a line, because a point would be hidden
            axes.axhline(rows["p50_ms"].iloc[0], color=colour, linestyle="--", label=method)
            continue
        axes.plot(rows["recall"], rows["p50_ms"], color=colour, marker="o", markersize=4, label=method)
        for row in rows.itertuples() if len(rows) > 1 else ():
            axes.annotate(str(row.effort), (row.recall, row.p50_ms), fontsize=7, xytext=(-4, 4), ha="right",
                          textcoords="offset points", color=colour)  # fmt: skip
    axes.set(xlabel="Recall against exact search", ylabel="Milliseconds a query (median)", yscale="log")
    plain = StrMethodFormatter("{x:g}")  # a log axis defaults to formulas, which `own_style` does not parse
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.set_title(f"What finding more costs, {images:,} images")
    if len(curve):
        axes.legend(loc="upper left", frameon=False, title="effort beside each point", title_fontsize=8)
    _save(figure, path)


@own_style
def message(text: str, path: Path) -> None:
    """Draw a figure that says why there is nothing to draw."""
    figure, axes = _new(5.5, 2)
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", wrap=True, transform=axes.transAxes)
    _save(figure, path)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(axes: Axes, left: float, top: float, pixels: np.ndarray, caption: str, frame: str | None) -> None:
    side = CELL[0] - 2 * MARGIN
    left += MARGIN
    axes.imshow(pixels, extent=(left, left + side, top + side, top), aspect="auto")
    axes.add_patch(
        Rectangle((left, top), side, side, fill=False, edgecolor=frame or GREY, linewidth=2.5 if frame else 0.8)
    )
    axes.text(left + side / 2, top + side + 0.06, caption, ha="center", va="top", fontsize=8)


def _short(label: str) -> str:
    return label if len(label) <= 14 else label[:13] + "…"


def _save(figure: Figure, path: Path) -> None:
    with new_file(path) as partial:
        # the version of matplotlib would change the file's hash
        figure.savefig(partial, format="png", metadata={"Software": None})
