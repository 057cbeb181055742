"""A collection at one moment: what is there, what it is called, and what a search says of it."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from lookalike.errors import LookalikeError
from lookalike.images import SUFFIXES
from lookalike.journal import Event
from lookalike.searcher import Searcher


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    rank: int  # 1 is the most similar
    path: str
    label: str  # "" if it has none
    cosine: float  # what it is ranked by, -1 to 1: of the refined vectors, of the words, or both by their weight
    visual: float | None = None  # of the refined vectors, where words took part too
    text: float | None = None  # of the words, where they took part

    def fields(self) -> dict[str, Any]:
        """What there is to show, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def check_name(path: str, label: str) -> None:
    """Raise LookalikeError for a path that no folder of images can have."""
    parts = PurePosixPath(path)
    try:
        (path + label).encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python carries as lone surrogates
        raise LookalikeError(f"path {path!a} or label {label!a} is not UTF-8; give another") from None
    if parts.is_absolute() or ".." in parts.parts or str(parts) != path or not parts.name or "\0" in path:
        raise LookalikeError(f"path {path!r} must be relative, without '..'")
    if parts.suffix.lower() not in SUFFIXES:
        raise LookalikeError(f"path {path!r} must end as an image does: {' '.join(sorted(SUFFIXES))}")
    if any(part.startswith(".") for part in parts.parts):
        raise LookalikeError(f"path {path!r} has a part that begins with a dot, which is left out of a folder")


@dataclass(frozen=True)
class Names:
    """Path and label of the rows of an index, memory-mapped, sorted by path: str, (N,) each."""

    paths: np.ndarray
    labels: np.ndarray

    def row(self, path: str) -> int | None:
        """The row of a path; None if there is none."""
        if np.array(path).dtype.itemsize > self.paths.dtype.itemsize:
            return None
        row = int(np.searchsorted(self.paths, np.array(path, self.paths.dtype)))
        return row if row < len(self.paths) and self.paths[row] == path else None


@dataclass(frozen=True)
class State:
    """The collection at one moment. Rows below N are the index's own, the others were added, in that order.

    present  bool, (N + M,): False for what was removed or replaced.
    added    float32, (M, d).
    events   of the added rows.
    changed  where a path that was changed is now; None where it is no more.
    number   of the last event.
    """

    names: Names
    searcher: Searcher
    present: np.ndarray
    added: np.ndarray
    events: list[Event]
    changed: dict[str, int | None]
    number: int

    def __len__(self) -> int:
        return len(self.searcher.index)

    def row(self, path: str) -> int:
        """The row of an image; raises LookalikeError if it is not in the collection."""
        row = self.changed[path] if path in self.changed else self.names.row(path)
        if row is None:
            raise LookalikeError(f"{path} is not in the collection; paths are as a search shows them")
        return row

    def __contains__(self, path: str) -> bool:
        return (self.changed[path] if path in self.changed else self.names.row(path)) is not None

    def holds(self, path: str, label: str, image: str) -> bool:
        """Whether an image was added under this path, of this class and these bytes, by their hex SHA-256."""
        place = (self.changed.get(path) or 0) - len(self.names.paths)
        return place >= 0 and (self.events[place].label, self.events[place].image) == (label, image)

    def path_and_label(self, row: int) -> tuple[str, str]:
        """What a row is called, and its class."""
        return self.paths_and_labels([row])[0]

    def paths_and_labels(self, rows: list[int]) -> list[tuple[str, str]]:
        """What rows are called, and their classes."""
        count = len(self.names.paths)
        own = np.minimum(np.array(rows, np.int64), count - 1)
        names = list(zip(self.names.paths[own].tolist(), self.names.labels[own].tolist(), strict=True))
        for place, row in enumerate(rows):
            if row >= count:
                names[place] = self.events[row - count].path, self.events[row - count].label
        return names

    def find(self, label: str | None = None, text: str = "") -> np.ndarray:
        """Rows of the images that are there, of a class and with a text in their path in any case: int64, ascending."""
        rows = np.flatnonzero(self.present)
        count = len(self.names.paths)
        own, fresh = rows[rows < count], rows[rows >= count] - count
        if label is not None:
            own = own[self.names.labels[own] == label]
        if text:
            own = own[np.strings.find(np.char.lower(self.names.paths[own]), text.lower()) >= 0]
        events = [self.events[row] for row in fresh]
        kept = [label in (None, event.label) and text.lower() in event.path.lower() for event in events]
        return np.concatenate([own, fresh[np.array(kept, dtype=bool)] + count])

    def now(self, rows: np.ndarray) -> np.ndarray:
        """Where images of the index are now, by their path: rows, int64 (m,) -> int64 (m,), -1 for what is no more."""
        places = np.arange(len(self.names.paths))
        for path, row in self.changed.items():
            own = self.names.row(path)
            if own is not None:
                places[own] = -1 if row is None else row
        return np.asarray(places[rows])

    def labels(self) -> list[str]:
        """Every class that an image has now, sorted."""
        own = np.unique(self.names.labels[self.present[: len(self.names.labels)]]).tolist()
        fresh = self.present[len(self.names.labels) :].tolist()
        return sorted({*own, *(event.label for event, there in zip(self.events, fresh, strict=True) if there)} - {""})
