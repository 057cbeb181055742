"""Search by picture, as the command and the browser page do: take a picture, return ranked hits, or add it."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from lookalike.artifacts import descriptions
from lookalike.artifacts.descriptions import check_same_network
from lookalike.collection import verify
from lookalike.collection.collection import Gallery
from lookalike.collection.hits import Hit
from lookalike.collection.query import Query
from lookalike.images import decode, decoder
from lookalike.index import build
from lookalike.runtimes import openvino, text_encoder
from lookalike.runtimes.registry import Embedder

MAX_PIXELS = 100_000_000  # limit of a picture, which guards memory


class Pictures:
    """A gallery and its network, asked together. The network is loaded for the first picture that is embedded."""

    def __init__(self, index: Path, model: Path, changes: Path) -> None:
        """Open what `index` and `model` wrote, and the changes made since."""
        self._model = model
        self.gallery = Gallery(index, changes, self.embed, self.read if descriptions.present(model) else None)

    @cached_property
    def _network(self) -> Embedder:
        self._check()
        return openvino.load(self._model, self.gallery.embedding.image_size, 1, "float32")

    @cached_property
    def _reader(self) -> text_encoder.Reader:
        self._check()
        return text_encoder.load(self._model)

    def _check(self) -> None:
        if verify.has_digests(self._model):  # a bundle's
            verify.verify(self._model, remedy="lookalike bundle")
        check_same_network(self.gallery.embedding, self._model)

    def read(self, text: str) -> np.ndarray:
        """Embed a text, where the network is CLIP's and its text tower is there: float32 (D,)."""
        return self._reader(text)

    def embed(self, content: bytes) -> np.ndarray:
        """Decode an image file's content and embed it: float32 (D,). Raises ImageError if it cannot be decoded."""
        embedding = self.gallery.embedding
        square = decoder.shared().run(decode.square, content, embedding.image_size, embedding.fit, MAX_PIXELS)
        return np.asarray(self._network(decode.as_pixels(square)[np.newaxis])[0])

    def search(self, content: bytes | None, query: Query) -> list[Hit]:
        """Find the images most similar to an image file's content, or, without one, to a text; see Gallery.search."""
        count = len(self.gallery.state)
        build.check_k(min(query.k, count), count)  # before the network is loaded
        feature = None if content is None else self.embed(content)[np.newaxis]
        return self.gallery.search(feature, query)[0]

    def add(self, path: str, label: str, content: bytes, *, replace: bool = False) -> bool:
        """Add an image file's content under a path; see Gallery.add. False where that very image was added before."""
        digest = hashlib.sha256(content).hexdigest()
        if self.gallery.state.holds(path, label, digest):
            return False
        self.gallery.add(path, label, digest, content, self.embed(content), replace=replace)
        return True
