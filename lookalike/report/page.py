"""Report of a run: one self-contained HTML page, to read on a phone or send to a colleague."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_file
from lookalike.report.captions import FIGURES, Figure


@dataclass(frozen=True)
class Table:
    """A table of the page. Numbers have three decimals."""

    title: str
    text: str
    content: pd.DataFrame


def write(path: Path, pictures: Iterable[Figure], tables: list[Table], **content: Any) -> None:
    """Render `page.html.j2` into one file that embeds the pictures, which lie in the same folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2").render(
        **content,
        pictures=[
            each._asdict() | {"data": base64.b64encode((path.parent / each.file).read_bytes()).decode()}
            for each in pictures
        ],
        tables=[_cells(table) for table in tables],
    )
    with new_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def write_evaluation(
    folder: Path, tables: dict[str, pd.DataFrame], headline: dict[str, Any], traces: Path | None
) -> None:
    """Write report.html from the tables and figures of `evaluate`.

    folder    contains the figures; the page is written there.
    tables    by the name of their CSV file.
    headline  the content of metrics.json.
    traces    folder of the stages' JSON traces, which describe the images, the network and the index.
    """
    names = ("raw", "processed", "model", "features", "index")
    trace = {name: _trace(traces, name) for name in names}
    measured = "unmeasurable" not in headline
    by_class = tables["per_class"]
    first = [name for name in ("class", "queries", "gallery", "mAP", "P@1", "P@10", "R-precision") if name in by_class]
    confused = tables["confusion"]
    confused = confused[confused["actual"] != confused["predicted"]].value_counts().rename("queries").reset_index()
    write(
        folder / "report.html",
        [figure for figure in FIGURES if measured or figure.name in ("map", "examples")],
        [
            Table("Classes, hardest first", "Mean over the queries of each class.", by_class[first]),
            Table("Most often confused", "Among the hardest classes: the class of the first hit, where it is another.",
                  confused.sort_values(["queries", "actual", "predicted"], ascending=[False, True, True])),
            Table("Near-duplicates across classes", "The most similar pairs with different labels, by raw cosine: "
                  "copies, wrong labels, or classes that overlap.", tables["near_duplicates"]),
        ],
        origin=trace["raw"], processed=trace["processed"], model=trace["model"], index=trace["index"],
        unmeasurable=headline.get("unmeasurable", ""), queries=headline["queries"], gallery=headline["gallery"],
        figures=tables["figures"].to_dict("records"),
        cards=_cards(headline, tables["figures"]) if measured else [],
        provenance=[(f"{name}.{key}", value) for name in names for key, value in trace[name].items()],
    )  # fmt: skip


def _cards(headline: dict[str, Any], figures: pd.DataFrame) -> list[dict[str, str]]:
    gain = figures.set_index("figure").loc["mAP"]
    headline = headline | {"gain": gain["gain"]}
    cards = [
        ("mAP", "mAP", f"{headline['mAP_low']:.3f} to {headline['mAP_high']:.3f}"),
        ("gain", "gained over raw cosine", f"{gain['gain_low']:+.3f} to {gain['gain_high']:+.3f}"),
        ("mAP_class_mean", "class-mean mAP", "every class counts the same"),
        ("P@1", "P@1", "the first hit is right"),
        ("P@10", "P@10", "share of right hits among ten"),
        ("mAP_seeds_mean", "mAP over split seeds", f"± {headline.get('mAP_seeds_sd', 0):.3f} standard deviation"),
    ]
    return [
        {"value": f"{headline[key]:.3f}", "name": name, "note": note} for key, name, note in cards if key in headline
    ]


class _Unknown(dict[str, Any]):
    """A missing trace: every field reads as a question mark."""

    def __missing__(self, _key: str) -> str:
        return "?"


def _trace(traces: Path | None, name: str) -> dict[str, Any]:
    path = traces / f"{name}.json" if traces else None
    try:
        return _Unknown(json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {})
    except ValueError:
        raise LookalikeError(f"{path} is not the trace of a stage; make it anew: dvc repro") from None


def _cells(table: Table) -> dict[str, Any]:
    content = table.content.copy()
    words = [name for name in content.columns if not pd.api.types.is_numeric_dtype(content[name])]
    for name in content.columns:
        if pd.api.types.is_float_dtype(content[name]):
            content[name] = [f"{value:.3f}" for value in content[name]]
    return {"title": table.title, "text": table.text, "columns": list(content.columns), "words": words,
            "rows": content.to_dict("records")}  # fmt: skip
