"""Tables and a plot of what benchmarks/index/run.py measured."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.common import markdown

AT = 0.99  # recall that latencies are compared at
FLOOR = 1e-4  # of a miss, in the plot
BRUTE_FORCE, FLAT = "scikit-learn, cosine and argsort", "ours: flat float32"
ALONE = "search alone"
OTHERS = ("hnswlib", "usearch")


def report(paths: list[Path], plot: Path | None) -> None:
    """Print every result's tables, and what grows with N; draw them if there is a path for it."""
    results = sorted((json.loads(path.read_text(encoding="utf-8")) for path in paths), key=lambda each: each["rows"])
    for each in results:
        show(each)
    if len(results) > 1:
        growth(results)
    if plot:
        draw(results, plot)


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['command']}\n{result['machine']}")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print(f"\n## {title(result)}\n")
    points = pd.DataFrame(result["points"])
    print(f"At recall@10 {AT}, interpolated between points of a sweep; what cannot reach it is shown at its best\n")
    print(markdown(at_recall(result)))
    print("\nWhat was built\n")
    files = [
        [name, file["seconds"], file["threads"], file["peak_mb"], round(file["bytes"] / result["rows"], 1),
         " ".join(f"{key}={value}" for key, value in file["settings"].items()), file["chosen"]]
        for name, file in result["files"].items()
    ]  # fmt: skip
    print(markdown(pd.DataFrame(
        files, columns=["method", "build s", "threads", "peak MB of building", "bytes a vector", "settings", "chose"]
    )))  # fmt: skip
    print("\nFrom a file to the first answer\n")
    opening = [[name, round(value["ms"], 1), round(value["mb"])] for name, value in result["opening"].items()]
    print(markdown(pd.DataFrame(opening, columns=["file", "ms", "MB of its own in memory"])))
    print("\nEvery point\n")
    print(markdown(points), end="\n\n")


def at_recall(result: dict[str, Any]) -> pd.DataFrame:
    """Each method's speed where its recall is AT, or where it is best, and how many times as fast it is as others."""
    points = pd.DataFrame(result["points"])
    rows = []
    for (method, scope), own in points.groupby(["method", "scope"], sort=False):
        best = own["recall"].max()
        recall = best if len(own) == 1 else min(AT, best)
        p50, p99, seconds = (interpolate(own, column, recall) for column in ("p50_us", "p99_us", "mean_us"))
        rows.append({"method": method, "scope": scope, "recall@10": recall, "p50 µs": p50, "p99 µs": p99,
                     "queries/s": 1e6 / seconds})  # fmt: skip
    table = pd.DataFrame(rows)
    flat = table[table["method"] == FLAT].set_index("scope")["p50 µs"]
    brute = table[table["method"] == BRUTE_FORCE]["p50 µs"]
    able = table[table["method"].str.startswith(OTHERS) & (table["recall@10"] >= AT)]
    table["× scikit-learn"] = (brute.min() if len(brute) else np.nan) / table["p50 µs"]
    table["× flat"] = table["scope"].map(flat) / table["p50 µs"]
    table["× faster of hnswlib, usearch"] = able["p50 µs"].min() / table["p50 µs"].where(table["scope"] == ALONE)
    digits = {"recall@10": 4, "p50 µs": 0, "p99 µs": 0, "queries/s": 0}
    for column in table.columns[2:]:
        table[column] = [shown(value, digits.get(column, 2)) for value in table[column]]
    return table


def interpolate(points: pd.DataFrame, column: str, recall: float) -> float:
    """Latency on a method's curve where it has that recall: log latency, linear in recall.

    points  of one method. Of those no more exact than a faster one, none is on the curve.
    """
    ordered = points.sort_values(column)
    curve = ordered[ordered["recall"] > ordered["recall"].cummax().shift(fill_value=-1.0)]
    return float(np.exp(np.interp(recall, curve["recall"], np.log(curve[column]))))


def growth(results: list[dict[str, Any]]) -> None:
    """Print p50 at recall AT of every set of vectors that is searched alone, one column a set."""
    columns = {}
    for result in results:
        table = at_recall(result)
        table = table[(table["scope"] == ALONE) & (table["recall@10"].astype(float) >= AT)]
        columns[f"p50 µs, {title(result)}"] = table.set_index("method")["p50 µs"]
    print(f"## Growth with the number of rows, at recall@10 {AT}\n")
    order = dict.fromkeys(name for column in columns.values() for name in column.index)
    print(markdown(pd.DataFrame(columns).reindex(list(order)).fillna("").reset_index(names="method")))


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Recall against latency, a panel a set, and p50 at recall AT against the number of rows."""
    figure, axes = plt.subplots(1, len(results) + 1, figsize=(5.5 * (len(results) + 1), 5), layout="constrained")
    names = list(dict.fromkeys(point["method"] for result in results for point in result["points"]))
    colours = {name: plt.get_cmap("tab20")(number % 20) for number, name in enumerate(names)}
    for axis, result in zip(axes, results, strict=False):
        points = pd.DataFrame(result["points"])
        for method, own in points[points["scope"] == ALONE].sort_values("p50_us").groupby("method"):
            missed = 1 - own["recall"].clip(upper=1 - FLOOR)
            axis.plot(missed, own["p50_us"], marker=".", linewidth=1, label=method, color=colours[str(method)])
        axis.set(title=title(result), xscale="log", yscale="log", xlim=(0.3, FLOOR / 1.2))
        axis.set(xlabel=f"1 - recall@10 ({FLOOR} stands for less)", ylabel="p50 of one query, µs")
        axis.axvline(1 - AT, color="grey", linewidth=0.5)
        axis.grid(alpha=0.3)
    for method in names:
        found = []
        for result in results:
            points = pd.DataFrame(result["points"])
            own = points[(points["method"] == method) & (points["scope"] == ALONE)]
            if len(own) and own["recall"].max() >= AT:
                found.append((result["rows"], interpolate(own, "p50_us", AT)))
        if found:
            axes[-1].plot(*zip(*found, strict=True), marker="o", label=method, color=colours[method])
    axes[-1].set(title=f"at recall@10 {AT}", xlabel="rows", ylabel="p50 of one query, µs", xscale="log", yscale="log")
    axes[-1].grid(alpha=0.3)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def title(result: dict[str, Any]) -> str:
    """Its size."""
    return f"{result['set']}, {result['rows']:,} × {result['dim']}"


def shown(value: float, digits: int) -> str:
    """A number, or nothing for nan."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"
