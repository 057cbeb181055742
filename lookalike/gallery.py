"""A built index, open: searched by vectors or by its own images, and changed without a rebuild.

What is built stays as it is, in data/index; what changes is in a journal in data/changes, which no stage writes. Every
search sees every change that was committed before it began, by this process or another.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from lookalike import indexes, tags, trust
from lookalike.changed import Changed
from lookalike.collection import map_names
from lookalike.errors import LookalikeError, closest
from lookalike.journal import Bound, Event, Journal
from lookalike.network import load_embedding
from lookalike.refine import Refinement
from lookalike.searcher import Matched, Searcher
from lookalike.state import Hit, Names, State, check_name
from lookalike.tags import Tags, TextError, Words
from lookalike.texts import Reader
from lookalike.vectors import unit_length

LABELS = 64  # classes whose rows are remembered, a byte an image each
SAID_WEIGHT = 0.5  # of a text that the network reads, beside a picture
REBUILD_SHARE = 0.1  # of the images changed since the index was built, from which a rebuild is advised

Embed = Callable[[bytes], np.ndarray]  # an image file's content -> float32 (D,)


class Rebuilt(LookalikeError):
    """The index was rebuilt since it was opened; open it again."""


def mixed(vectors: np.ndarray, said: np.ndarray, weight: float) -> np.ndarray:
    """Pictures and a text as one query each: float32 (Q, d) and (1, d), of unit length, -> (Q, d), of unit length."""
    return unit_length((1 - weight) * vectors + np.float32(weight) * said)


class Gallery:
    """An index, opened. Safe to share between threads; changes by several processes take turns."""

    def __init__(
        self,
        folder: Path,
        changes: Path,
        tell: Callable[[str], None] = lambda message: None,
        embed: Embed | None = None,
        read: Reader | None = None,
    ) -> None:
        """Verify, then open what `index` wrote; what a search does not touch stays on disk.

        folder   data/index; its trace lies beside it.
        changes  data/changes.
        tell     takes what a user should know.
        embed    embeds pictures anew, where changes were made under another network.
        read     embeds texts, where the network can; asked where there are no tags.
        """
        self._folder = folder
        self.fingerprint = trust.verify(folder)
        self._written = trust.written(folder)
        self.embedding = load_embedding(folder)
        self.journal = Journal(changes)
        self._tell, self._embed, self._read = tell, embed, read
        self._index = indexes.open_file(folder)
        self.refinement = Refinement.load(folder, indexes.load_plan(folder).refine)
        # Views: a memory map's own indexing takes longer than to read what it is asked for.
        self._names = Names(*(np.asarray(each) for each in map_names(folder)))
        self.tags: Tags | None = tags.load(folder)
        if not len(self._names.paths) == len(self._names.labels) == len(self._index):
            raise LookalikeError(
                f"{folder} has {len(self._index)} vectors but {len(self._names.paths)} paths; they are written "
                "together, so make it anew: dvc repro --force index"
            )
        self._lock = threading.Lock()
        self._advised = False
        self._version: tuple[int, int] | None = None
        self._state = self._start()
        self._of_label = lru_cache(LABELS)(self._find_label)

    @property
    def state(self) -> State:
        """The collection now. Raises Rebuilt if another index has taken the place of the one that was opened."""
        if trust.written(self._folder) != self._written:
            self._check_same()
        version = self.journal.version()
        if version != self._version:
            with self._lock:
                self._state = self._follow(version)
                self._version = version
        return self._state

    def search(
        self, features: np.ndarray | None, k: int, min_similarity: float = -1, label: str | None = None,
        text: str | None = None, text_weight: float | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        """Find the k most similar images of each query, best first.

        features        float32, (Q, D), as the network gives them; None for one query of words alone.
        k               1 to the number of images.
        min_similarity  the least cosine of a hit.
        label           search this class only; then fewer than k hits are all of the class.
        text            words that the images' tags are compared with, too; alone, or at weight 1, it finds only what
                        shares a word. Where there are no tags and the network reads texts: with the images themselves.
        text_weight     of the words beside a picture, 0 to 1; `text_weight` by default.

        Raises LookalikeError for a k out of range and a class that no image has, TextError for words that no image has.
        """
        state = self.state
        indexes.check_k(k, len(state))
        weight = self._weight(text_weight, text is not None)
        said = self._said(text)
        words = None if text is None or said is not None else self._tagged().query(text)
        if features is None and (text is None or text_weight is not None):
            raise TextError("a search needs a picture, or a text without a weight, or both; give one")
        if features is not None:
            queries = self.refinement.project(self._checked(features))
            indexes.check_queries(queries, k, len(state), self._index.dim)
            queries = queries if said is None else mixed(queries, said, weight)
        elif said is not None:
            queries = said
        elif words is not None:
            return [self._hits_of_words(state, words, k, min_similarity, label)]
        if words is None or not weight:
            return self._hits(state, queries, k, min_similarity, label)
        return [self._hits_of_both(state, query, words, weight, k, min_similarity, label) for query in queries]

    def similar(
        self, path: str, k: int, min_similarity: float = -1, label: str | None = None,
        text: str | None = None, text_weight: float | None = None,
    ) -> list[Hit]:  # fmt: skip
        """Find the k most similar images of one of the collection, itself left out; k is 1 to all the others.

        text         words beside it, as in `search`; None for its own tags, if it has some.
        text_weight  of the words, 0 to 1; `text_weight` by default.
        """
        state = self.state
        row = state.row(path)
        if not 1 <= k < len(state):
            raise LookalikeError(f"k is {k}, but there are {len(state) - 1} other images; choose 1 to that")
        weight = self._weight(text_weight, self.tags is not None or text is not None)
        said = self._said(text)
        words = None
        if said is None:
            words = self._own_words(path) if text is None else self._tagged().query(text)
        vector = state.searcher.index.vectors(np.array([row]))
        vector = vector if said is None else mixed(vector, said, weight)
        if words is None or not weight:
            return self._hits(state, vector, k + 1, min_similarity, label, row)[0][:k]
        return self._hits_of_both(state, vector[0], words, weight, k + 1, min_similarity, label, row)[:k]

    @property
    def reads_texts(self) -> bool:
        """Whether a text is compared with the images themselves."""
        return self.tags is None and self._read is not None

    @property
    def text_weight(self) -> float | None:
        """What words weigh beside a picture, if a search does not say; None where words find nothing."""
        if self.tags is not None:
            return self.tags.weight
        return SAID_WEIGHT if self._read else None

    def tagged(self) -> int:
        """How many images have tags."""
        if self.tags is None:
            return 0
        return int(np.count_nonzero(self.state.now(np.unique(self.tags.rows)) >= 0))

    def add(self, path: str, label: str, image: str, content: bytes, feature: np.ndarray, *, replace: bool) -> None:
        """Add one image, on disk and searchable when this returns.

        image    hex SHA-256 of its `content`, the original file's bytes.
        feature  float32, (D,), as the network gives it.
        replace  take the place of an image of that path; otherwise that is a LookalikeError.
        """
        check_name(path, label)
        feature = self._checked(feature[np.newaxis])[0]
        before = self.state
        with self.journal.changing(self.fingerprint, self.embedding) as writer:
            state = self._advance(before, writer.events(before.number))
            if path in state and not replace:
                raise LookalikeError(f"{path} is in the collection already; give another name, or replace it")
            vector = self._join(state, feature, path)
            writer.append(Event(path, label, image, vector, feature), content)
        self._advise()

    def remove(self, paths: list[str]) -> None:
        """Take images out, all or, where one is unknown, none."""
        before = self.state
        with self.journal.changing(self.fingerprint, self.embedding) as writer:
            state = self._advance(before, writer.events(before.number))
            for path in paths:
                state.row(path)  # raises where there is none
            for path in paths:
                writer.append(Event(path))
        self._advise()

    def _join(self, state: State, feature: np.ndarray, path: str) -> np.ndarray:
        """The vector of an image that joins, float32 (d,); the one whose place it takes is no neighbour of it."""
        index, others = state.searcher.index, state.present.copy()
        if path in state:
            others[state.row(path)] = False

        def nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            return index.search(vectors, min(count, len(index)), others)

        projected = self.refinement.project(feature[np.newaxis])
        joined = self.refinement.join(projected, nearest, index.vectors) if others.any() else projected
        return np.asarray(joined[0])

    def _hits(
        self, state: State, queries: np.ndarray, k: int, min_similarity: float, label: str | None, itself: int = -1
    ) -> list[list[Hit]]:
        allowed = None if label is None else self._labelled(state, label)
        cosines, rows = state.searcher.search_projected(queries, k, allowed=allowed)
        found = []
        for own_cosines, own_rows in zip(cosines.tolist(), rows.tolist(), strict=True):
            pairs = zip(own_cosines, own_rows, strict=True)  # re-ranked, their cosines do not fall steadily
            kept = [(cosine, row) for cosine, row in pairs if row not in (-1, itself) and cosine >= min_similarity]
            names = zip(state.paths_and_labels([row for _, row in kept]), kept, strict=True)
            found.append([Hit(rank, path, label, cosine) for rank, ((path, label), (cosine, _)) in enumerate(names, 1)])
        return found

    def _hits_of_words(self, state: State, words: Words, k: int, least: float, label: str | None) -> list[Hit]:
        matched = self._matched(state, words, label)
        order = np.argsort(-matched.cosines, kind="stable")[:k]
        order = order[matched.cosines[order].astype(float) >= least]
        names = state.paths_and_labels(matched.rows[order].tolist())
        found = zip(names, matched.cosines[order].tolist(), strict=True)
        return [Hit(rank, *name, cosine, text=cosine) for rank, (name, cosine) in enumerate(found, 1)]

    def _hits_of_both(
        self, state: State, query: np.ndarray, words: Words, weight: float, k: int, least: float, label: str | None,
        itself: int = -1,
    ) -> list[Hit]:  # fmt: skip
        allowed = None if label is None else self._labelled(state, label)
        found = state.searcher.fuse(query[np.newaxis], self._matched(state, words, label), weight, k, allowed)
        kept = (found.cosines.astype(float) >= least) & (found.rows != itself)
        names = state.paths_and_labels(found.rows[kept].tolist())
        cosines = np.stack([found.cosines, found.visual, found.text], axis=1)[kept].tolist()  # (n, 3)
        return [Hit(rank, *name, *own) for rank, (name, own) in enumerate(zip(names, cosines, strict=True), 1)]

    def _matched(self, state: State, words: Words, label: str | None) -> Matched:
        """The images of a class that are there and share a word."""
        rows, cosines = self._tagged().match(words)
        rows = state.now(rows)
        kept = (rows >= 0) if label is None else (rows >= 0) & self._labelled(state, label)[rows]
        rows, cosines = rows[kept], cosines[kept]
        order = np.argsort(rows)
        return Matched(rows[order], cosines[order])

    def _said(self, text: str | None) -> np.ndarray | None:
        """A text as the network sees it, refined: float32 (1, d); None where tags are what it is compared with."""
        if text is None or self.tags is not None or self._read is None:
            return None
        return self.refinement.project(self._checked(self._read(text)[np.newaxis]))

    def _own_words(self, path: str) -> Words | None:
        row = self._names.row(path)
        return self.tags.own(row) if self.tags and row is not None else None

    def _tagged(self) -> Tags:
        if self.tags is None:
            raise TextError(
                "the index has no tags, so a text finds nothing; set index.tags.file and: dvc repro index; or take a "
                "network that reads texts (docs/embeddings.md)"
            )
        return self.tags

    def _weight(self, given: float | None, words: bool) -> float:
        """The weight of words; 0 where there are none."""
        usual = self.text_weight
        if given is None:
            return usual or 0 if words else 0
        if usual is None:
            self._tagged()
        if not words:
            raise TextError(f"text weight {given} has no text that it would weigh; give one, or no weight")
        if not 0 <= given <= 1:
            raise TextError(f"text weight is {given}; choose 0, the picture alone, to 1, the words alone")
        return given

    def _labelled(self, state: State, label: str) -> np.ndarray:
        """Which rows have a label: bool (N + M,)."""
        fresh = np.array([event.label == label for event in state.events], dtype=bool)
        allowed: np.ndarray = np.concatenate([self._of_label(label), fresh]) & state.present
        if not allowed.any():
            known = state.labels()
            raise LookalikeError(
                f"no image is labelled {label!r}; {closest(label, known) if known else 'none is at all'}"
            )
        return allowed

    def _find_label(self, label: str) -> np.ndarray:
        return np.asarray(self._names.labels == label)

    def _checked(self, features: np.ndarray) -> np.ndarray:
        dim = self.embedding.network.dim
        if features.ndim != 2 or features.shape[1] != dim:
            raise LookalikeError(
                f"queries are {features.shape}, but the index was made from embeddings of {dim} dimensions; they come "
                "from another network"
            )
        return features

    def _advise(self) -> None:
        state = self.state
        changed = int(np.count_nonzero(~state.present[: len(self._index)])) + len(state.added)
        if changed > REBUILD_SHARE * len(self._index) and not self._advised:
            self._advised = True
            self._tell(
                f"{changed} changes since {len(self._index)} images were indexed; a search gets slower with them: fold "
                "them into the source folder and rebuild (dvc repro)"
            )

    # --- following the journal, and the index ----------------------------------------------------------------------

    def _check_same(self) -> None:
        written = trust.written(self._folder)
        if trust.verify(self._folder) != self.fingerprint:
            raise Rebuilt(f"{self._folder} was rebuilt since it was opened; open it again")
        self._written = written

    def _start(self) -> State:
        present, added = np.ones(len(self._index), dtype=bool), np.zeros((0, self._index.dim), np.float32)
        return State(self._names, Searcher(self.refinement, self._index), present, added, [], {}, 0)

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
        """The state after some more events."""
        if not events:
            return state
        changed, joined = dict(state.changed), [event for event in events if event.image]
        present = np.concatenate([state.present, np.ones(len(joined), dtype=bool)])
        next_row = len(state.present)
        for event in events:
            before = changed[event.path] if event.path in changed else self._names.row(event.path)
            if before is not None:
                present[before] = False
            changed[event.path] = next_row if event.image else None
            next_row += bool(event.image)
        vectors = np.array([event.vector for event in joined], np.float32).reshape(-1, self._index.dim)
        added = np.concatenate([state.added, vectors])
        searcher = Searcher(self.refinement, Changed(self._index, present, added))
        return State(self._names, searcher, present, added, state.events + joined, changed, events[-1].number)

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
            feature = event.embedding
            if not same and self._embed:
                feature = self._embed(self.journal.image(event.image))
            if feature is None:
                return None
            vector = self._join(state, self._checked(feature[np.newaxis])[0], event.path)
            return Event(event.path, event.label, event.image, vector, feature)

        moved, left_out = self.journal.rebase(self.fingerprint, self.embedding, keep)
        if moved or left_out:
            self._tell(
                f"the index was rebuilt: {moved} changes made since the one before are carried over, {left_out} are in "
                "it already"
            )
