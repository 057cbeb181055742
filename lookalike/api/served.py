"""Pictures as they are sent out: decoded and encoded anew, so that nothing of the file goes along but the pixels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lookalike.api import problems
from lookalike.api.problems import Problem
from lookalike.collection import thumbnails
from lookalike.collection.journal import Journal
from lookalike.collection.snapshot import State
from lookalike.images import previews
from lookalike.images.decode import ImageError
from lookalike.images.decoder import TooSlowError

Run = Callable[
    ..., Any
]  # a function, its arguments -> what it returns; see lookalike.images.decode.decoder.Decoder.run


@dataclass(frozen=True)
class Stored:
    """Where the original of an image is, and what differs when it does."""

    version: str
    read: Callable[[], bytes]

    def tag(self, side: int | None) -> str:
        """The ETag of what is made of it."""
        return f'"{hashlib.sha256(f"{self.version} {side}".encode()).hexdigest()[:32]}"'


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    content: bytes
    media_type: str
    tag: str


def stored(state: State, journal: Journal, row: int, folder: Path) -> Stored:
    """Find the original of a row: an added one in the journal, any other in the folder of originals, never outside.

    folder  of originals, or of a bundle's thumbnails, which then stand for them.
    """
    count = len(state.names.paths)
    if row >= count:
        digest = state.events[row - count].image
        return Stored(digest, lambda: journal.image(digest))
    if (folder / thumbnails.FILE).is_file():  # a bundle's: all the pictures there are
        name, made = state.path_and_label(row)[0], (folder / thumbnails.FILE).stat()
        version = f"{made.st_mtime_ns} {made.st_ino}"
        return Stored(f"{name} {version}", lambda: _bundled(folder, version)(name))
    inside = folder.resolve()
    path = (inside / state.path_and_label(row)[0]).resolve()
    if not path.is_relative_to(inside) or not path.is_file():
        raise Problem(problems.NO_ORIGINAL, "the image is in the index, but its file is not on this machine")
    status = path.stat()
    return Stored(f"{path} {status.st_mtime_ns} {status.st_size} {status.st_ino}", path.read_bytes)


@lru_cache(4)
def _bundled(folder: Path, version: str) -> Callable[[str], bytes]:
    """What reads a bundle's pictures; verified once, and again when another file has taken its place."""
    return thumbnails.reader(folder)


def rendered(found: Stored, side: int | None, max_pixels: int, run: Run) -> Picture:
    """Decode an original and encode it; see lookalike.images.decode.previews.copy. `run` runs that in a decoder."""
    try:
        content, media_type = run(previews.copy, found.read(), side, max_pixels)
    except TooSlowError:
        raise
    except (ImageError, OSError, thumbnails.Missing):
        raise Problem(problems.NO_ORIGINAL, "the image is in the index, but its file cannot be decoded") from None
    return Picture(content, media_type, found.tag(side))
