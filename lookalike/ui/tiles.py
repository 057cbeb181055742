"""Two components that Streamlit lacks: pictures that can be clicked, and a button to paste one.

Names and labels go to the page as text, never as HTML.
"""

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import streamlit as st

HERE = Path(__file__).parent
_tiles = st.components.v2.component(
    "lookalike_tiles", css=(HERE / "tiles.css").read_text("utf-8"), js=(HERE / "tiles.js").read_text("utf-8")
)
_paste = st.components.v2.component(
    "lookalike_paste",
    html='<button type="button">Paste a picture <kbd>Ctrl+V</kbd></button><p role="status"></p>',
    css=(HERE / "paste.css").read_text("utf-8"),
    js=(HERE / "paste.js").read_text("utf-8"),
)


@dataclass(frozen=True)
class Tile:
    """A picture to click.

    id       is given back.
    picture  a JPEG; None where there is none.
    alt      what it is, for who cannot see it.
    first    a line of text under it, and `second` another.
    mark     "same" or "other" class as the query's; "" where that is not known.
    current  the one that is shown already: no button.
    """

    id: str
    picture: bytes | None
    alt: str
    first: str
    second: str = ""
    mark: Literal["same", "other", ""] = ""
    current: bool = False


def show(
    key: str,
    tiles: list[Tile],
    label: str,
    picked: Callable[[str], None],
    kind: Literal["large", "small", "trail"] = "large",
    status: str = "",
    step: str = "",
    *,
    follow: bool = False,
) -> None:
    """Show pictures; a click calls `picked` with an id, before the page is made anew.

    label   what they are, for who cannot see them.
    status  a line above them, which a screen reader reads when it changes.
    step    differs where they show something else.
    follow  scroll to them when `step` changes, if they are out of sight.
    """

    def on_picked() -> None:
        answer = st.session_state[key].picked
        if isinstance(answer, str):
            picked(answer)

    data = {
        "kind": kind,
        "label": label,
        "status": status,
        "step": step,
        "follow": follow,
        "tiles": [_as_json(tile) for tile in tiles],
    }
    _tiles(key=key, data=data, on_picked_change=on_picked)


def paste(key: str, most: int, pasted: Callable[[bytes], None]) -> None:
    """Show the button; `pasted` is called with what was pasted, at most `most` bytes."""

    def on_pasted() -> None:
        answer = st.session_state[key].pasted
        if isinstance(answer, str):
            try:
                pasted(base64.b64decode(answer, validate=True))
            except ValueError:
                pasted(b"")

    _paste(key=key, data={"most": most}, on_pasted_change=on_pasted)


def _as_json(tile: Tile) -> dict[str, Any]:
    content = asdict(tile)
    picture = content.pop("picture")
    return {**content, "src": picture and f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"}
