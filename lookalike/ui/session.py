"""The collection that the page shows, opened once for all visitors."""

import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from lookalike.base.errors import LookalikeError
from lookalike.collection.hits import Hit
from lookalike.collection.picture_search import MAX_PIXELS, Pictures
from lookalike.collection.query import Query
from lookalike.collection.thumbnails import Missing, Thumbnails
from lookalike.images import decode, decoder, previews
from lookalike.ui.launch import MAX_MEGABYTES

MAX_BYTES = MAX_MEGABYTES << 20  # size limit of a picture
REMEMBERED = 256  # embeddings of pictures, by their bytes


@dataclass(frozen=True)
class Places:
    """The folders that the page reads; see the options of `lookalike ui`."""

    index: Path
    model: Path
    changes: Path
    images: Path
    metrics: Path
    plots: Path


@dataclass(frozen=True)
class Start:
    """The start of a search: an image of the collection by its path, or a picture from outside by its content."""

    path: str = ""
    content: bytes = b""
    thumbnail: bytes = b""  # JPEG of the content, small


@dataclass(frozen=True)
class Answer:
    """Hits, and the seconds that the network and the search took; none for what needs no network."""

    hits: list[Hit]
    embedding: float | None
    search: float


class Opened:
    """An open collection with thumbnails and remembered embeddings. Safe to share between threads."""

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

    def answer(self, start: Start | None, query: Query) -> Answer:
        """Search, by the words alone where there is no start; see Gallery.search and Gallery.similar.

        The weight is left out where there are no words that it would weigh.
        """
        path, content = (start.path, start.content) if start else ("", b"")
        own = bool(path) and self.gallery.tags is not None  # an image has words of its own, where none are typed
        if start is None or (query.text is None and not own):
            query = replace(query, text_weight=None)
        vector, seconds = self._embed(content) if content else (None, None)
        begun = time.perf_counter()
        if path:
            hits = self.gallery.similar(path, query)
        else:
            hits = self.gallery.search(None if vector is None else vector[np.newaxis], query)[0]
        return Answer(hits, seconds, time.perf_counter() - begun)

    def thumbnail(self, path: str) -> bytes | None:
        """Return the thumbnail of an image of the collection; None where it cannot be read."""
        try:
            return self._thumbnails.of(path)
        except Missing:
            return None

    def label(self, path: str) -> str:
        """Return the class of an image of the collection."""
        state = self.gallery.state
        return state.path_and_label(state.row(path))[1]

    def labels(self) -> list[str]:
        """List every class."""
        state = self.gallery.state
        if self._labels[0] != state.number:
            self._labels = state.number, state.labels()
        return self._labels[1]

    def _load_network(self) -> None:
        blank = previews.encode(Image.new("RGB", (8, 8)))
        with self._network, suppress(LookalikeError):  # said to whoever searches with a picture
            self.pictures.embed(blank)

    def _embed(self, content: bytes) -> tuple[np.ndarray, float]:
        """Return the embedding, float32 (D,), and the seconds it took when it was made."""
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


def start_from(content: bytes) -> Start:
    """Take a picture from a visitor, whatever it was called. Raises LookalikeError with the reason where it is none."""
    if not content:
        raise LookalikeError("The file is empty.")
    if len(content) > MAX_BYTES:
        raise LookalikeError(f"The file has {len(content) / 2**20:.0f} MB; {MAX_MEGABYTES} MB is the limit.")
    try:
        return Start(content=content, thumbnail=decoder.shared().run(previews.thumbnail, content, MAX_PIXELS))
    except decode.ImageError as error:
        raise LookalikeError(f"This file cannot be searched with: {error}.") from None
