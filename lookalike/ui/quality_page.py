"""The page of figures: how good the search is, as `evaluate` measured it."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from lookalike.report.captions import FIGURES
from lookalike.ui.session import Opened

CARDS = (
    ("mAP", "how well everything of a class comes first"),
    ("P@1", "the first hit is right"),
    ("P@10", "share of right hits among ten"),
    ("R@10", "share of the class among ten"),
)

CARD_STYLE = """<style>
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; }
.cards div { border: 1px solid #8885; border-radius: .6rem; padding: .6rem .9rem .8rem; }
.cards dt { font-weight: 600; }
.cards dd { margin: 0; padding: 0; }
.cards span { display: block; font-size: .85rem; opacity: .75; }
.cards b { display: block; font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
</style><dl class="cards" style="margin: 0 0 .5rem; padding: 0">"""


def show(opened: Opened) -> None:
    """Draw the page."""
    places = opened.places
    st.header("How good is this search?", anchor=False)
    measured = _read(places.metrics / "metrics.json")
    if not measured:
        st.info(f"Nothing is measured yet: there is no {places.metrics / 'metrics.json'}. "
                "Measure: `dvc repro evaluate`", icon=":material/straighten:")  # fmt: skip
    elif "unmeasurable" in measured:
        st.info(f"Quality cannot be measured: {measured['unmeasurable']}. The search works all the same.")
    else:
        _figures(opened, measured)
    _speed(_read(places.metrics / "latency.json"))
    _pictures(places.plots)


def _figures(opened: Opened, measured: dict[str, Any]) -> None:
    """Cards, what they are about, and the table."""
    queries, gallery = measured["queries"], measured["gallery"]
    st.caption(f"{queries:,} queries were searched among {gallery:,} images, none of them itself. Under a figure: "
               "where it would lie with other queries (95 % interval).")  # fmt: skip
    indexed = len(opened.gallery.state.names.paths)
    images = measured.get("images", indexed)
    if images != indexed:
        st.warning(f"This was measured with {images:,} images, but {indexed:,} are indexed: another collection, or "
                   "another day. Measure this one: `dvc repro evaluate`")  # fmt: skip
    table = _table(opened.places.plots / "figures.csv")
    cards = [_card(name, meaning, measured[name], table) for name, meaning in CARDS if name in measured]
    st.html(f"{CARD_STYLE}{''.join(cards)}</dl>")
    if len(table):
        with st.expander("All figures"):
            intervals = zip(table["low"], table["high"], strict=True)
            shown = pd.DataFrame({
                "value": table["value"].map("{:.3f}".format),
                "without refinement": table["raw"].map("{:.3f}".format),
                "95 % interval": [f"{low:.3f} to {high:.3f}" for low, high in intervals],
            })  # fmt: skip
            st.table(shown)


def _card(name: str, meaning: str, value: float, table: pd.DataFrame) -> str:
    row = table.loc[name] if name in table.index else None
    between = "" if row is None else f"{row['low']:.3f} to {row['high']:.3f}"
    return f"<div><dt>{name}</dt><dd><b>{value:.3f}</b><span>{between}</span><span>{meaning}</span></dd></div>"


def _speed(latency: dict[str, Any]) -> None:
    medians = {
        name: value["p50_ms"] for name, value in latency.items() if isinstance(value, dict) and value.get("p50_ms")
    }
    brute = medians.pop("brute_force", None)
    if brute and medians:
        own = list(medians.values())[-1]  # the index that ships comes after exact search
        st.markdown(
            f"**Speed:** a query takes {own:.2f} ms, brute force {brute:.2f} ms (medians, when it was measured)."
        )


def _pictures(folder: Path) -> None:
    """The figures that are there: narrow ones in two columns, wide ones below each other."""
    there = [figure for figure in FIGURES if (folder / figure.file).is_file()]
    columns = st.columns(2, gap="medium")
    for place, figure in enumerate(figure for figure in there if not figure.wide):
        with columns[place % 2]:
            st.subheader(figure.title, anchor=False)
            st.caption(figure.text)
            st.image(folder / figure.file, alt=f"{figure.title}. {figure.text}", width="stretch")
    for figure in there:
        if figure.wide:
            st.subheader(figure.title, anchor=False)
            st.caption(figure.text)
            picture = base64.b64encode((folder / figure.file).read_bytes()).decode()
            st.html(  # on a phone it scrolls sideways instead of shrinking
                f'<div style="overflow-x:auto" tabindex="0" role="region" aria-label="{html.escape(figure.title)}">'
                f'<img style="width:100%;min-width:44rem" alt="{html.escape(f"{figure.title}. {figure.text}")}" '
                f'src="data:image/png;base64,{picture}"></div>'
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if isinstance(content, list) and len(content) == 1:  # as benchmark writes its times
        content = content[0]
    return content if isinstance(content, dict) else {}


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path).set_index("figure")
    except (OSError, ValueError, KeyError):
        return pd.DataFrame()
