"""A figure of search results: a row a query, itself first, similarity and class under each hit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookalike.collection.collection import Gallery
from lookalike.collection.hits import Hit
from lookalike.collection.picture_search import MAX_PIXELS
from lookalike.collection.thumbnails import Thumbnails
from lookalike.images import decode, decoder
from lookalike.report.plots import Example, example_queries
from lookalike.report.plots import Hit as Drawn

SIDE = 160  # pixels of a picture in the figure


@dataclass(frozen=True)
class Found:
    """A query, pixels uint8 (S, S, 3), and its hits.

    name   what is written under it.
    label  its class; None where that is not known, and no hit is marked as right or wrong.
    """

    name: str
    pixels: np.ndarray
    label: str | None
    hits: list[Hit]


def found_with(name: str, content: bytes, hits: list[Hit]) -> Found:
    """Show the hits of a picture from outside, whose class is not known."""
    square = decoder.shared().run(decode.square, content, SIDE, "pad", MAX_PIXELS)
    return Found(name, decode.as_pixels(square), None, hits)


def found_for(text: str, hits: list[Hit]) -> Found:
    """Show the hits of words, which have no picture."""
    return Found(text, np.full((SIDE, SIDE, 3), 255, np.uint8), None, hits)


def found_from(path: str, gallery: Gallery, pictures: Thumbnails, hits: list[Hit]) -> Found:
    """Show the hits of an image of the collection."""
    state = gallery.state
    _, label = state.path_and_label(state.row(path))
    return Found(label or path.rpartition("/")[2], pictures.pixels(path, SIDE), label or None, hits)


def draw(found: list[Found], pictures: Thumbnails, searched: int, path: Path) -> None:
    """Write the figure as a PNG. Raises Missing where the picture of a hit cannot be read.

    searched  images, by each query.
    """
    examples = [
        Example(
            one.pixels,
            one.name,
            None,
            [
                Drawn(pictures.pixels(hit.path, SIDE), hit.label, hit.cosine, _relevant(one.label, hit.label))
                for hit in one.hits
            ],
        )
        for one in found
    ]
    example_queries(examples, f"Most similar of {searched:,} images", path)


def _relevant(query: str | None, hit: str) -> bool | None:
    return query == hit if query and hit else None
