"""The search page: a picture on one side, its hits on the other; a click on a hit searches with it."""

from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from lookalike.base.errors import LookalikeError
from lookalike.collection.live_index import Rebuilt
from lookalike.collection.query import Query
from lookalike.ui import tiles
from lookalike.ui.session import MAX_BYTES, Opened, Start, start_from
from lookalike.ui.tiles import Tile

SOURCES = ("Your picture", "Camera", "Collection")
PICKS = 12  # images of the collection that are offered
MOST = 60  # hits that can be asked for
WORDS_MOST = 200  # characters
ANY = "any"
LEAST = [ANY, *(f"{hundredth / 100:.2f}" for hundredth in range(100))]


def show(opened: Opened) -> None:
    """Draw the page."""
    state = st.session_state
    state.setdefault("trail", [])
    state.setdefault("refused", "")
    state.setdefault("draw", 0)
    count = len(opened.gallery.state)
    classes = f" in {len(opened.labels())} classes" if opened.labels() else ""
    st.header("Find pictures that look alike", anchor=False)
    st.caption(
        f"{count:,} image{'s' if count > 1 else ''}{classes}, compared by {opened.gallery.embedding.network.backbone}"
    )
    if count == 0:
        st.info("The collection is empty: every image was removed. Add some: `lookalike add photo.jpg`")
        return
    choices, results = st.columns([1, 2], gap="large")
    with choices:
        _choose(opened)
        query = _settings(opened)
    with results:
        if state.trail or query.text:
            _results(opened, query)
        else:
            st.subheader("Or start from one of these", anchor=False)
            _offer(opened, "picks", "large", None, "")


def _choose(opened: Opened) -> None:
    """Let the visitor choose a picture."""
    source = st.segmented_control("Start from", SOURCES, key="source", default=SOURCES[0], required=True)
    if source == SOURCES[0]:
        st.file_uploader(
            "Drop a picture here, or choose one",
            type="image",
            key="upload",
            on_change=_taken,
            args=("upload",),
            help="JPEG, PNG, WebP, BMP, GIF or TIFF. Kept in the server's memory, as long as your visit.",
        )
        tiles.paste("paste", MAX_BYTES, _start_with)
    elif source == SOURCES[1]:
        st.camera_input("Take a picture", key="camera", on_change=_taken, args=("camera",))
    else:
        label = _class("Of the class", "of_class", opened)
        text = st.text_input("With this in its name", key="named", placeholder="part of its path")
        _offer(opened, "browse", "small", label, text.strip())
    if st.session_state.refused:
        st.error(st.session_state.refused, icon=":material/broken_image:")


def _settings(opened: Opened) -> Query:
    """Let the visitor set the query: k, minimum similarity, class, and words where the index has any."""
    others = len(opened.gallery.state) - 1  # images that one of the collection can be compared with
    most = max(1, min(MOST, others))
    k = 1
    if most > 1:
        k = int(st.slider("Images to show", 1, most, min(10, most), key="k"))
    least = st.select_slider(
        "At least this similar", LEAST, key="least", help="The nearer to 1, the more alike; 0 is nothing alike."
    )
    label = _class("Only of the class", "class", opened)
    text, weight = _words(opened)
    return Query(k, -1.0 if least == ANY else float(least), label, text, weight)


def _words(opened: Opened) -> tuple[str | None, float | None]:
    """Let the visitor type words, and set their weight beside a picture."""
    usual = opened.gallery.text_weight
    if usual is None:
        return None, None
    where = "that say what it shows" if opened.gallery.reads_texts else "in its tags"
    text = st.text_input("With these words", key="words", max_chars=WORDS_MOST, placeholder=where).strip()
    weight = st.slider(
        "Weight of words",
        0.0,
        1.0,
        usual,
        key="weight",
        help="Beside a picture: 0 compares pictures alone, 1 words alone. An image of the collection has its own.",
    )
    return text or None, weight


def _class(question: str, key: str, opened: Opened) -> str | None:
    """Let the visitor choose a class; None for all, and where there are none."""
    if not opened.labels():
        return None
    return (
        st.selectbox(question, ["", *opened.labels()], key=key, format_func=lambda name: name or "all classes") or None
    )


def _results(opened: Opened, query: Query) -> None:
    """Show the trail and the hits of its last step, or those of words alone."""
    trail: list[Start] = st.session_state.trail
    try:
        steps = [_step(opened, number, start) for number, start in enumerate(trail)]
        way = " ".join(step.id + step.alt for step in steps)
        if steps:
            tiles.show("steps", steps, "The way here", _back, "trail", step=way)
        start = trail[-1] if trail else None
        if start and start.path and len(opened.gallery.state) == 1:
            st.info("It is the only image of the collection, so there is none that could be like it.")
            return
        answer = opened.answer(start, query)
        if not answer.hits:
            nearest = opened.answer(start, replace(query, k=1, min_similarity=-1)).hits
            st.info(
                f"Nothing is at least {query.min_similarity:.2f} similar; the most similar image reaches "
                f"{nearest[0].cosine:.2f}. Ask for less."
                if nearest
                else "There is no other such image.",
                icon=":material/search_off:",
            )
            return
    except Rebuilt:
        raise
    except LookalikeError as error:
        st.warning(str(error), icon=":material/warning:")
        st.button("Start again", on_click=_clear)
        return
    own = opened.label(start.path) if start and start.path else ""
    found = [
        Tile(
            hit.path,
            opened.thumbnail(hit.path),
            hit.path,
            f"{hit.cosine:.3f}",
            hit.label or hit.path,
            "" if not (own and hit.label) else "same" if hit.label == own else "other",
        )
        for hit in answer.hits
    ]
    like = [] if start is None else [f"like {start.path or 'yours'}"]
    like += [f"with “{query.text}”"] if query.text else []
    searched = f"{len(found)} of {len(opened.gallery.state):,} images {', '.join(like)}"
    embedded = "" if answer.embedding is None else f"embedded in {_milliseconds(answer.embedding)}, "
    seen = f"{searched}, {embedded}found in {_milliseconds(answer.search)}"
    tiles.show("hits", found, "Most similar first", _go_on, status=seen, step=way, follow=True)
    if all(tile.picture is None for tile in found):
        st.info(
            f"The pictures are not in {opened.places.images}, so names must do. Make them: `dvc repro download`, "
            "or say where they are: `lookalike ui --images FOLDER`"
        )


def _offer(opened: Opened, key: str, kind: Any, label: str | None, text: str) -> None:
    """Offer some images of the collection, drawn at random; the same ones on every first visit."""
    state = opened.gallery.state
    rows = state.find(label, text)
    if not len(rows):
        st.info(
            "No image is called so. Paths are as under a hit, such as " + state.path_and_label(int(state.find()[0]))[0]
        )
        return
    few = np.random.default_rng(st.session_state.draw).choice(rows, min(PICKS, len(rows)), replace=False)
    found = [state.path_and_label(int(row)) for row in (few if len(rows) > PICKS else np.sort(few))]
    shown = [Tile(path, opened.thumbnail(path), path, name or path) for path, name in found]
    step = f"{st.session_state.draw} {label} {text}"
    tiles.show(key, shown, "Images of the collection", _start_from, kind, f"{len(shown)} of {len(rows):,} images", step)
    if len(rows) > PICKS:
        st.button("Show others", key=f"{key}_others", on_click=_others, icon=":material/casino:")


def _step(opened: Opened, number: int, start: Start) -> Tile:
    current = number == len(st.session_state.trail) - 1
    if not start.path:
        return Tile(str(number), start.thumbnail, "your picture", "yours", current=current)
    label = opened.label(start.path)
    return Tile(str(number), opened.thumbnail(start.path), start.path, label or start.path, current=current)


# --- what a click does: before the page is drawn anew, without the collection ---------------------------------------


def _taken(key: str) -> None:
    """Take a file that was uploaded or photographed, or forget one that was taken back."""
    file = st.session_state.get(key)
    if file is None:
        _clear()
    else:
        _start_with(file.getvalue())


def _start_with(content: bytes) -> None:
    try:
        st.session_state.trail = [start_from(content)]
        st.session_state.refused = ""
    except LookalikeError as error:
        st.session_state.refused = str(error)


def _start_from(path: str) -> None:
    st.session_state.trail = [Start(path)]
    st.session_state.refused = ""


def _go_on(path: str) -> None:
    st.session_state.trail = [*st.session_state.trail, Start(path)]


def _back(number: str) -> None:
    kept = int(number) + 1 if number.isdecimal() else 0
    st.session_state.trail = st.session_state.trail[:kept] or st.session_state.trail


def _others() -> None:
    st.session_state.draw += 1


def _clear() -> None:
    st.session_state.trail, st.session_state.refused = [], ""


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"
