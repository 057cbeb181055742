"""The table and the plot of what benchmarks/backbones.py measured."""

from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import StrMethodFormatter

from benchmarks import common

BLUE, GREY = "#1f5fa8", "#8a8f98"


def on_the_front(rate: pd.Series, quality: pd.Series) -> list[bool]:
    """Whether each row is on the Pareto front: no other is as good in both and better in one.

    >>> on_the_front(pd.Series([10, 20, 5]), pd.Series([0.8, 0.7, 0.6]))
    [True, True, False]
    """
    points = list(zip(rate.tolist(), quality.tolist(), strict=True))
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, random weights in bold."""
    shown = table.copy()
    shown["weights"] = [f"**{weights}**" if weights == "random" else weights for weights in table["weights"]]
    shown["parameters"] = [f"{count / 1e6:.1f} M" for count in table["parameters"]]
    shown["queries"] = [
        f"{count}, own list" if kind == "lists" else str(count)
        for count, kind in zip(table["queries"], table["protocol"], strict=True)
    ]
    shown["images/s"] = [f"{rate:.1f}" for rate in table["images/s"]]
    shown["CPU ms"] = [f"{each:.1f}" for each in table["CPU ms"]]
    for column in ("mAP raw", "mAP", "P@1 raw", "P@1"):
        shown[column] = [f"{value:.3f}" for value in table[column]]
    shown["Pareto"] = ["yes" if front else "" for front in table["Pareto"]]
    return common.markdown(shown.drop(columns="protocol"))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Refined mAP against images a second, the Pareto front joined; each raw mAP as a dash below or above its own."""
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    axis.set(xscale="log", xlabel="images a second, embedding alone (log scale; right is cheaper)", ylabel="mAP")
    front = table[table["Pareto"]].sort_values("images/s")
    axis.plot(front["images/s"], front["mAP"], color=BLUE, linewidth=1, linestyle="--", label="Pareto front")
    for number, row in enumerate(table.to_dict("records")):
        trained = row["weights"] != "random"
        colour = BLUE if row["Pareto"] else GREY
        x, y, raw = row["images/s"], row["mAP"], row["mAP raw"]
        axis.vlines(x, min(raw, y), max(raw, y), color=colour, linewidth=0.8, alpha=0.6)
        axis.plot(x, raw, marker="_", markersize=11, color=colour, linestyle="", label="" if number else "raw cosine")
        axis.plot(x, y, marker="o", markersize=8, color=colour, linestyle="", fillstyle="full" if trained else "none",
                  label="" if number else "refined")  # fmt: skip
        text = f"{row['run']}\nD {row['D']}, {row['parameters'] / 1e6:.1f} M" + ("" if trained else ", random weights")
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axis.annotate(text, (x, y), (9, 0), textcoords="offset points", va="center", fontsize=9, bbox=box)
    axis.set_ylim(0, 1)
    low, high = table["images/s"].min(), table["images/s"].max()
    axis.set_xlim(low / 1.5, high * 2.5)  # room for the names
    axis.grid(alpha=0.3, which="both")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axis.tick_params(axis="x", which="minor", labelsize=8)
    axis.set_title(
        "Quality against cost" + ("" if table["queries"].nunique() == 1 else "; queries differ, see the table")
    )
    axis.legend(loc="lower left", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
