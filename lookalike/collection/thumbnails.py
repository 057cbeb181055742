"""Thumbnails of a collection: small, re-encoded, without metadata.

They come from the folder of originals, or from the one file of them that a bundle has; added ones from the journal.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.collection import verify
from lookalike.collection.collection import Gallery
from lookalike.collection.picture_search import MAX_PIXELS
from lookalike.images import decode, decoder, previews

KEPT = 2048  # thumbnails in memory, some 20 MB
FOLDER, FILE = "thumbnails", "thumbnails.sqlite"
T = TypeVar("T")


class Missing(LookalikeError):
    """A picture of an image of the collection that cannot be read."""


class Thumbnails:
    """Thumbnails of a gallery. Safe to share between threads."""

    def __init__(self, gallery: Gallery, source: Path) -> None:
        """Take a gallery, and the folder of its pictures: originals, or the one that `write` wrote."""
        self._gallery, self._read = gallery, reader(source)
        self._encoded = lru_cache(KEPT)(self._encode)

    def of(self, path: str) -> bytes:
        """Return the thumbnail of an image of the collection: a JPEG file's content.

        Raises LookalikeError for a path that is not in the collection, Missing where its picture cannot be read.
        """
        return self._encoded(path, self._added(path))

    def pixels(self, path: str, size: int) -> np.ndarray:
        """Return the picture on a white square: uint8 (size, size, 3). Raises as `of` does."""
        return decode.as_pixels(self._run(path, self._added(path), decode.square, size, "pad", MAX_PIXELS))

    def own(self, path: str) -> bytes:
        """Return the thumbnail of an image of the index, whatever was changed since."""
        return self._encode(path, "")

    def _added(self, path: str) -> str:
        """Return the SHA-256 of the picture that was added under a path; "" for one of the index's own."""
        state = self._gallery.state
        row = state.row(path) - len(state.names.paths)
        return state.events[row].image if row >= 0 else ""

    def _run(self, path: str, added: str, work: Callable[..., T], *options: object) -> T:
        """Run work on a picture in a decoder."""
        content = self._gallery.journal.image(added) if added else self._read(path)
        try:
            return decoder.shared().run(work, content, *options)
        except decode.ImageError as error:
            raise Missing(f"{path}: its picture {error}; make it anew: dvc repro --force download") from None

    def _encode(self, path: str, added: str) -> bytes:
        return self._run(path, added, previews.thumbnail, MAX_PIXELS)


def beside(index: Path) -> Path:
    """Find the pictures of an index: the folder thumbnails beside it, as in a bundle, else raw."""
    thumbnails = index.with_name(FOLDER)
    return thumbnails if thumbnails.is_dir() else index.with_name("raw")


def write(
    paths: Iterable[str], thumbnail: Callable[[str], bytes], folder: Path, progress: Callable[[], object]
) -> None:
    """Write thumbnails into an empty folder, as one file: many small ones are slow to copy."""
    with closing(sqlite3.connect(folder / FILE)) as file:
        file.execute("CREATE TABLE thumbnails (path TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID")
        for path in paths:
            file.execute("INSERT INTO thumbnails VALUES (?, ?)", [path, thumbnail(path)])
            progress()
        file.commit()


def reader(source: Path) -> Callable[[str], bytes]:
    """Make a function that reads a picture by its path in the collection: from originals, or the file of `write`.

    It raises Missing for a picture that is not there.
    """
    file = source / FILE
    if not file.is_file():

        def from_folder(path: str) -> bytes:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise Missing(f"{path!r} is no path in {source}")
            try:
                return (source / path).read_bytes()
            except OSError as error:
                raise Missing(
                    f"{source / path} cannot be read ({error.strerror}); make it: dvc repro download, or say where the "
                    "pictures are: --images"
                ) from None

        return from_folder

    verify.verify(source, remedy="lookalike bundle")
    lock = threading.Lock()
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def from_file(path: str) -> bytes:
        try:
            with lock:
                row = connection.execute("SELECT content FROM thumbnails WHERE path = ?", [path]).fetchone()
        except sqlite3.DatabaseError as error:
            raise Missing(f"{file} cannot be read ({error}); make the bundle anew: lookalike bundle") from None
        if row is None:
            raise Missing(f"{path}: {file} has no picture of it; make the bundle anew: lookalike bundle")
        return bytes(row[0])

    return from_file
