"""A snapshot of a collection: its images, their names and classes, and its searcher."""

from dataclasses import dataclass

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.collection.journal import Event
from lookalike.collection.names import Names
from lookalike.index.searcher import Searcher


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
        """Find the row of an image; raises LookalikeError if it is not in the collection."""
        row = self.changed[path] if path in self.changed else self.names.row(path)
        if row is None:
            raise LookalikeError(f"{path} is not in the collection; paths are as a search shows them")
        return row

    def __contains__(self, path: str) -> bool:
        return (self.changed[path] if path in self.changed else self.names.row(path)) is not None

    def holds(self, path: str, label: str, image: str) -> bool:
        """Say whether an image was added under this path, of this class and these bytes, by their hex SHA-256."""
        place = (self.changed.get(path) or 0) - len(self.names.paths)
        return place >= 0 and (self.events[place].label, self.events[place].image) == (label, image)

    def path_and_label(self, row: int) -> tuple[str, str]:
        """Return path and class of a row."""
        return self.paths_and_labels([row])[0]

    def paths_and_labels(self, rows: list[int]) -> list[tuple[str, str]]:
        """Return paths and classes of rows."""
        count = len(self.names.paths)
        own = np.minimum(np.array(rows, np.int64), count - 1)
        names = list(zip(self.names.paths[own].tolist(), self.names.labels[own].tolist(), strict=True))
        for place, row in enumerate(rows):
            if row >= count:
                names[place] = self.events[row - count].path, self.events[row - count].label
        return names

    def find(self, label: str | None = None, text: str = "") -> np.ndarray:
        """Find rows by class, and by a text in their path in any case: int64, ascending."""
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
        """Map the index's rows to those of the same paths now: int64 (m,) -> int64 (m,), -1 for a path that is gone."""
        places = np.arange(len(self.names.paths))
        for path, row in self.changed.items():
            own = self.names.row(path)
            if own is not None:
                places[own] = -1 if row is None else row
        return np.asarray(places[rows])

    def labels(self) -> list[str]:
        """List every class that an image has now, sorted."""
        own = np.unique(self.names.labels[self.present[: len(self.names.labels)]]).tolist()
        fresh = self.present[len(self.names.labels) :].tolist()
        return sorted({*own, *(event.label for event, there in zip(self.events, fresh, strict=True) if there)} - {""})
