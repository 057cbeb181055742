"""The collection that the page shows: opened once for all visitors, asked by one at a time."""

import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from lookalike.base.errors import LookalikeError
from lookalike.collection.hits import Hit
from lookalike.collection.picture_search import MAX_PIXELS, Pictures
from lookalike.collection.thumbnails import Missing, Thumbnails
from lookalike.images import decode, decoder, previews
from lookalike.ui.launch import MAX_MEGABYTES

MAX_BYTES = MAX_MEGABYTES << 20  # of a picture
REMEMBERED = 256  # embeddings of pictures, by their bytes


@dataclass(frozen=True)
class Places:
    """Where everything lies; see the options of `lookalike ui`."""

    index: Path
    model: Path
    changes: Path
    images: Path
    metrics: Path
    plots: Path


@dataclass(frozen=True)
class Query:
    """What is searched with: an image of the collection by its path, or a picture from outside by its content."""

    path: str = ""
    content: bytes = b""
    thumbnail: bytes = b""  # of the content


@dataclass(frozen=True)
class Answer:
    """Hits, and the seconds that the network and the search took; none for what needs no network."""

    hits: list[Hit]
    embedding: float | None
    search: float


class Opened:
    """Pictures, their thumbnails and what was embedded; safe to share between threads."""

    def __init__(self, places: Places) -> None:
        """Open what lies in `places`."""
        self.places = places
        self.pictures = Pictures(places.index, places.model, places.changes)
        self.gallery = self.pictures.gallery
        self._thumbnails = Thumbnails(self.gallery, places.images)
        self._network = threading.Lock()  # it embeds one picture at a time, and one large picture is in memory
        self._embedded: OrderedDict[str, tuple[np.ndarray, float]] = OrderedDict()
        self._labels: tuple[int, list[str]] = (-1, [])
        # While the visitor chooses a picture. No daemon, as Streamlit's own thread is, which starts it: ended by force
        # within OpenVINO, it would abort the process.
        threading.Thread(target=self._load_network, daemon=False).start()

    def answer(
        self, query: Query | None, k: int, min_similarity: float, label: str | None,
        text: str | None = None, text_weight: float | None = None,
    ) -> Answer:  # fmt: skip
        """Search, by a text alone where there is no query; see Gallery.search and Gallery.similar."""
        if query is None or query.path:
            start = time.perf_counter()
            if query is None:
                hits = self.gallery.search(None, k, min_similarity, label, text)[0]
            else:
                own = self.gallery.tags is not None  # the image's own words, where none are typed
                weight = text_weight if own or text is not None else None
                hits = self.gallery.similar(query.path, k, min_similarity, label, text, weight)
            return Answer(hits, None, time.perf_counter() - start)
        vector, seconds = self._embed(query.content)
        start = time.perf_counter()
        weight = None if text is None else text_weight
        hits = self.gallery.search(vector[np.newaxis], k, min_similarity, label, text, weight)[0]
        return Answer(hits, seconds, time.perf_counter() - start)

    def thumbnail(self, path: str) -> bytes | None:
        """The small picture of an image of the collection; None where it cannot be read."""
        try:
            return self._thumbnails.of(path)
        except Missing:
            return None

    def label(self, path: str) -> str:
        """The class of an image of the collection."""
        state = self.gallery.state
        return state.path_and_label(state.row(path))[1]

    def labels(self) -> list[str]:
        """Every class."""
        state = self.gallery.state
        if self._labels[0] != state.number:
            self._labels = state.number, state.labels()
        return self._labels[1]

    def _load_network(self) -> None:
        blank = previews.encode(Image.new("RGB", (8, 8)))
        with self._network, suppress(LookalikeError):  # said to whoever searches with a picture
            self.pictures.embed(blank)

    def _embed(self, content: bytes) -> tuple[np.ndarray, float]:
        """Embedding, float32 (D,), and the seconds it took when it was made."""
        key = sha256(content).hexdigest()
        with self._network:
            if key not in self._embedded:
                start = time.perf_counter()
                vector = self.pictures.embed(content)
                self._embedded[key] = vector, time.perf_counter() - start
            self._embedded.move_to_end(key)
            while len(self._embedded) > REMEMBERED:
                self._embedded.popitem(last=False)
            return self._embedded[key]


def query_from(content: bytes) -> Query:
    """Take a picture from a visitor, whatever it was called. Raises LookalikeError with the reason where it is none."""
    if not content:
        raise LookalikeError("The file is empty.")
    if len(content) > MAX_BYTES:
        raise LookalikeError(f"The file has {len(content) / 2**20:.0f} MB; {MAX_MEGABYTES} MB is the limit.")
    try:
        return Query(content=content, thumbnail=decoder.shared().run(previews.thumbnail, content, MAX_PIXELS))
    except decode.ImageError as error:
        raise LookalikeError(f"This file cannot be searched with: {error}.") from None
