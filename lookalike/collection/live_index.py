"""An open index and the journal of its changes: the collection as it is now, whichever process changed it.

A state is made from the index and the events since; each later one from the one before and the events that came. Where
another index was built meanwhile, the first who looks carries the changes over to it.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lookalike.artifacts.arrays import map_names
from lookalike.artifacts.descriptions import load_embedding
from lookalike.base.errors import LookalikeError
from lookalike.collection import verify
from lookalike.collection.journal import Bound, Event, Journal, Writer
from lookalike.collection.names import Names
from lookalike.collection.overlay import Changed
from lookalike.collection.snapshot import State
from lookalike.index import files
from lookalike.index.searcher import Searcher
from lookalike.refinement.refinement import Refinement

logger = logging.getLogger(__name__)

Embed = Callable[[bytes], np.ndarray]  # an image file's content -> float32 (D,)


class Rebuilt(LookalikeError):
    """The index was rebuilt since it was opened; open it again."""


class LiveIndex:
    """An index and its journal. Safe to share between threads; changes by several processes take turns."""

    def __init__(
        self,
        folder: Path,
        changes: Path,
        embed: Embed | None = None,
    ) -> None:
        """Verify, then open what `index` wrote; see Gallery."""
        self._folder, self._embed = folder, embed
        self.fingerprint = verify.verify(folder)
        self._written = verify.written(folder)
        self.embedding = load_embedding(folder)
        self.journal = Journal(changes)
        self.index = files.open_file(folder)
        self.refinement = Refinement.load(folder, files.load_plan(folder).refine)
        # Views: a memory map's own indexing takes longer than to read what it is asked for.
        self.names = Names(*(np.asarray(each) for each in map_names(folder)))
        if not len(self.names.paths) == len(self.names.labels) == len(self.index):
            raise LookalikeError(
                f"{folder} has {len(self.index)} vectors but {len(self.names.paths)} paths; they are written "
                "together, so make it anew: dvc repro --force index"
            )
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._state = self._start()

    @property
    def state(self) -> State:
        """The collection now. Raises Rebuilt if another index has taken the place of the one that was opened."""
        if verify.written(self._folder) != self._written:
            self._check_same()
        version = self.journal.version()
        if version != self._version:
            with self._lock:
                self._state = self._follow(version)
                self._version = version
        return self._state

    @contextmanager
    def changing(self) -> Iterator[tuple[State, Writer]]:
        """Yield the collection as nobody else can change it until the block ends, and what writes a change."""
        before = self.state
        with self.journal.changing(self.fingerprint, self.embedding) as writer:
            yield self._advance(before, writer.events(before.number)), writer

    def join(self, state: State, feature: np.ndarray, path: str) -> np.ndarray:
        """Make the vector of an image that joins: float32 (d,). An image that it replaces is no neighbour of it.

        feature  float32, (D,), as the network gives it.
        """
        index, others = state.searcher.index, state.present.copy()
        if path in state:
            others[state.row(path)] = False

        def nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            return index.search(vectors, min(count, len(index)), others)

        projected = self.refinement.project(feature[np.newaxis])
        joined = self.refinement.join(projected, nearest, index.vectors) if others.any() else projected
        return np.asarray(joined[0])

    def checked(self, features: np.ndarray) -> np.ndarray:
        """Check that features, float32 (Q, D), have the index's dimension; raises LookalikeError otherwise."""
        dim = self.embedding.network.dim
        if features.ndim != 2 or features.shape[1] != dim:
            raise LookalikeError(
                f"queries are {features.shape}, but the index was made from embeddings of {dim} dimensions; they come "
                "from another network"
            )
        return features

    def _check_same(self) -> None:
        written = verify.written(self._folder)
        if verify.verify(self._folder) != self.fingerprint:
            raise Rebuilt(f"{self._folder} was rebuilt since it was opened; open it again")
        self._written = written

    def _start(self) -> State:
        present, added = np.ones(len(self.index), dtype=bool), np.zeros((0, self.index.dim), np.float32)
        return State(self.names, Searcher(self.refinement, self.index), present, added, [], {}, 0)

    def _follow(self, version: tuple[int, int] | None) -> State:
        bound = self.journal.bound()
        if bound is None:
            return self._start()
        moved = bound.fingerprint != self.fingerprint
        if moved:
            self._check_same()
            self._carry_over(bound)
        same_file = version is not None and self._version is not None and version[0] == self._version[0]
        goes_on = same_file and not moved and bound.first - 1 <= self._state.number <= bound.last
        state = self._state if goes_on else self._start()
        return self._advance(state, self.journal.events(state.number, self.fingerprint))

    def _advance(self, state: State, events: list[Event]) -> State:
        """Make the state after some more events."""
        if not events:
            return state
        changed, joined = dict(state.changed), [event for event in events if event.image]
        present = np.concatenate([state.present, np.ones(len(joined), dtype=bool)])
        next_row = len(state.present)
        for event in events:
            before = changed[event.path] if event.path in changed else self.names.row(event.path)
            if before is not None:
                present[before] = False
            changed[event.path] = next_row if event.image else None
            next_row += bool(event.image)
        vectors = np.array([event.vector for event in joined], np.float32).reshape(-1, self.index.dim)
        added = np.concatenate([state.added, vectors])
        searcher = Searcher(self.refinement, Changed(self.index, present, added))
        return State(self.names, searcher, present, added, state.events + joined, changed, events[-1].number)

    def _carry_over(self, bound: Bound) -> None:
        """Move changes that were made to another index onto this one."""
        state = self._start()
        same = bound.embedding == self.embedding
        if not same and self._embed is None:
            raise LookalikeError(
                f"{self.journal.path} holds changes made under another network; search with a picture, which embeds "
                "them anew, or move the file away"
            )

        def keep(event: Event, folded: bool) -> Event | None:
            known = event.path in state
            if not event.image:
                return event if known or not folded else None
            if folded and known:
                return None
            anew = self._embed if not same else None
            feature = anew(self.journal.image(event.image)) if anew else np.asarray(event.embedding)
            vector = self.join(state, self.checked(feature[np.newaxis])[0], event.path)
            return Event(event.path, event.label, event.image, vector, feature)

        moved, left_out = self.journal.rebase(self.fingerprint, self.embedding, keep)
        if moved or left_out:
            logger.info(
                f"the index was rebuilt: {moved} changes made since the one before are carried over, {left_out} are in "
                "it already"
            )
