"""The browser page, which `lookalike ui` serves.

streamlit run lookalike/ui/app.py -- --index data/index --model data/model
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image, ImageDraw

from lookalike.artifacts import descriptions
from lookalike.base.errors import LookalikeError
from lookalike.collection import thumbnails
from lookalike.collection.live_index import Rebuilt
from lookalike.ui import quality_page, search_page
from lookalike.ui.session import Opened, Places

# Streamlit leaves a fifth of a screen empty above, and its titles take two lines of a phone.
STYLE = """<style>
.stMainBlockContainer.block-container { padding: 4.5rem 1.25rem 3rem; max-width: 76rem; margin: 0 auto; }
.stMainBlockContainer h2 { font-size: clamp(1.35rem, 5vw, 1.9rem); padding-top: 0; }
.stMainBlockContainer h3 { font-size: 1.2rem; }
</style>"""


def main() -> None:
    """Draw the page that the visitor is on."""
    st.set_page_config("Lookalike", _icon(), layout="wide")
    st.html(STYLE)
    places = _places(sys.argv[1:])
    search = st.Page(
        partial(_draw, search_page.show, places),
        title="Search",
        url_path="search",
        default=True,
        icon=":material/image_search:",
    )
    quality = st.Page(
        partial(_draw, quality_page.show, places),
        title="How good is it?",
        url_path="quality",
        icon=":material/query_stats:",
    )
    page = st.navigation([search, quality], position="top")
    page.run()
    st.page_link(quality if page == search else search)  # on a phone the bar above is folded away


def _opened(places: Places) -> Opened:
    return Opened(places)


_open: Any = st.cache_resource(_opened, show_spinner="Opening the collection")  # once for all visitors


def _draw(page: Callable[[Opened], None], places: Places) -> None:
    try:
        page(_open(places))
    except Rebuilt:  # the next look is at the new one
        _open.clear()
        st.toast("The index was rebuilt meanwhile: this is the new one.")
        st.rerun()
    except LookalikeError as error:
        _help(error, places)


def _help(error: LookalikeError, places: Places) -> None:
    """Say why there is nothing to show, and what to do."""
    if places.index.is_dir():
        st.header("The collection cannot be opened", anchor=False)
        st.error(str(error), icon=":material/error:")
    else:
        st.header("There is nothing to search yet", anchor=False)
        st.markdown(
            f"No index lies in `{places.index}`. In the project's folder, one command makes it from its images:"
        )
        st.code("dvc repro", language="console")
        st.markdown("Your own pictures: `docs/data.md` says how. An index elsewhere: `lookalike ui --index FOLDER`.")
    st.button("Try again", type="primary")


def _places(arguments: list[str]) -> Places:
    parser = argparse.ArgumentParser(prog="app.py")
    parser.add_argument("--index", type=Path, default=Path("data/index"))
    parser.add_argument("--model", type=Path)
    for name in ("changes", "images", "metrics", "plots"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args(arguments)
    bundle = given.index.parent if (given.index.parent / "bundle.json").is_file() else Path()
    return Places(
        given.index,
        given.model or descriptions.beside(given.index),
        given.changes or given.index.with_name("changes"),
        given.images or thumbnails.beside(given.index),
        given.metrics or bundle / "metrics",
        given.plots or bundle / "plots",
    )


def _icon() -> Image.Image:
    """Draw the icon: two pictures that look alike."""
    icon = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(icon)
    draw.rounded_rectangle((4, 4, 42, 42), 8, fill="#1f5fa8")
    draw.rounded_rectangle((22, 22, 60, 60), 8, fill="#7fb1e6", outline="white", width=3)
    return icon


if __name__ == "__main__":
    main()
