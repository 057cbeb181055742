"""A built index, open: searched by vectors or by its own images, and changed without a rebuild.

What is built stays as it is, in data/index; what changes is in a journal in data/changes, which no stage writes. Every
search sees every change that was committed before it began, by this process or another.
"""

import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lookalike.base.errors import LookalikeError, closest
from lookalike.base.vectors import unit_length
from lookalike.collection.hits import Hit
from lookalike.collection.journal import Event
from lookalike.collection.live_index import Embed, LiveIndex
from lookalike.collection.names import check_name
from lookalike.collection.query import Query
from lookalike.collection.snapshot import State
from lookalike.index import build, tags
from lookalike.index.searcher import Matched
from lookalike.index.tags import Tags, TextError, Words
from lookalike.runtimes.text_encoder import Reader

logger = logging.getLogger(__name__)

LABELS = 64  # classes whose rows are remembered; each takes a byte an image
SAID_WEIGHT = 0.5  # default weight of a text that the network reads, beside a picture
REBUILD_SHARE = 0.1  # share of images changed since the index was built, above which a rebuild is advised


class LabelError(LookalikeError):
    """A query for a class that no image has."""


def mixed(vectors: np.ndarray, said: np.ndarray, weight: float) -> np.ndarray:
    """Mix each picture's vector with a text's: float32 (Q, d) and (1, d), of unit length, -> (Q, d), of unit length."""
    return unit_length((1 - weight) * vectors + np.float32(weight) * said)


class Gallery(LiveIndex):
    """A live index that answers queries with hits. Safe to share between threads; processes take turns at changes."""

    def __init__(
        self,
        folder: Path,
        changes: Path,
        embed: Embed | None = None,
        read: Reader | None = None,
    ) -> None:
        """Verify, then open what `index` wrote; what a search does not touch stays on disk.

        folder   data/index; its trace lies beside it.
        changes  data/changes.
        embed    embeds pictures anew, where changes were made under another network.
        read     embeds texts, where the network can; asked where there are no tags.
        """
        super().__init__(folder, changes, embed)
        self.tags: Tags | None = tags.load(folder)
        self._read = read
        self._advised = False
        self._of_label = lru_cache(LABELS)(self._find_label)

    def search(self, features: np.ndarray | None, query: Query) -> list[list[Hit]]:
        """Find the images most similar to each picture, best first.

        features  float32, (Q, D), as the network gives them; None for the words of the query alone.

        Raises LookalikeError for a k below 1 and an empty collection, LabelError for a class that no image has,
        TextError for words that no image has.
        """
        state = self.state
        query = replace(query, k=min(query.k, len(state)))
        build.check_k(query.k, len(state))
        weight = self._weight(query.text_weight, query.text is not None)
        said = self._said(query.text)
        words = None if query.text is None or said is not None else self._tagged().query(query.text)
        if features is not None:
            vectors = self.refinement.project(self.checked(features))
            build.check_queries(vectors, query.k, len(state), self.index.dim)
            vectors = vectors if said is None else mixed(vectors, said, weight)
        elif said is not None and query.text_weight is None:
            vectors = said
        elif words is not None and query.text_weight is None:
            return [self._hits_of_words(state, words, query)]
        else:
            raise TextError("a search needs a picture, or a text without a weight, or both; give one")
        if words is None or not weight:
            return self._hits(state, vectors, query)
        return [self._hits_of_both(state, vector, words, weight, query) for vector in vectors]

    def similar(self, path: str, query: Query) -> list[Hit]:
        """Find the images most similar to one of the collection, itself left out, best first.

        The words are the query's, or, where it has none, the image's own tags, if it has some.
        """
        state = self.state
        row = state.row(path)
        if len(state) == 1:
            raise LookalikeError(f"{path} is the only image of the collection, so none can be like it; add others")
        if query.k < 1:
            raise LookalikeError(f"k is {query.k}; choose 1 or more")
        k = min(query.k, len(state) - 1)
        query = replace(query, k=k + 1)  # one of them is the image itself
        weight = self._weight(query.text_weight, self.tags is not None or query.text is not None)
        said = self._said(query.text)
        words = None
        if said is None:
            words = self._own_words(path) if query.text is None else self._tagged().query(query.text)
        vector = state.searcher.index.vectors(np.array([row]))
        vector = vector if said is None else mixed(vector, said, weight)
        if words is None or not weight:
            return self._hits(state, vector, query, row)[0][:k]
        return self._hits_of_both(state, vector[0], words, weight, query, row)[:k]

    @property
    def reads_texts(self) -> bool:
        """Whether texts are compared with the images themselves, not with tags."""
        return self._reader is not None

    @property
    def text_weight(self) -> float | None:
        """The default weight of words beside a picture; None where words find nothing."""
        if self.tags is not None:
            return self.tags.weight
        return SAID_WEIGHT if self._read else None

    def tagged(self) -> int:
        """Count the images that have tags."""
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
        feature = self.checked(feature[np.newaxis])[0]
        with self.changing() as (state, writer):
            if path in state and not replace:
                raise LookalikeError(f"{path} is in the collection already; give another name, or replace it")
            vector = self.join(state, feature, path)
            writer.append(Event(path, label, image, vector, feature), content)
        self._advise()

    def remove(self, paths: list[str]) -> None:
        """Take images out, all or, where one is unknown, none."""
        with self.changing() as (state, writer):
            for path in paths:
                state.row(path)  # raises where there is none
            for path in paths:
                writer.append(Event(path))
        self._advise()

    def _hits(self, state: State, vectors: np.ndarray, query: Query, itself: int = -1) -> list[list[Hit]]:
        allowed = None if query.label is None else self._labelled(state, query.label)
        cosines, rows = state.searcher.search_projected(vectors, query.k, allowed=allowed)
        least = query.min_similarity
        found = []
        for own_cosines, own_rows in zip(cosines.tolist(), rows.tolist(), strict=True):
            pairs = zip(own_cosines, own_rows, strict=True)  # re-ranked, their cosines do not fall steadily
            kept = [(cosine, row) for cosine, row in pairs if row not in (-1, itself) and cosine >= least]
            names = zip(state.paths_and_labels([row for _, row in kept]), kept, strict=True)
            found.append([Hit(rank, path, label, cosine) for rank, ((path, label), (cosine, _)) in enumerate(names, 1)])
        return found

    def _hits_of_words(self, state: State, words: Words, query: Query) -> list[Hit]:
        matched = self._matched(state, words, query.label)
        order = np.argsort(-matched.cosines, kind="stable")[: query.k]
        order = order[matched.cosines[order].astype(float) >= query.min_similarity]
        names = state.paths_and_labels(matched.rows[order].tolist())
        found = zip(names, matched.cosines[order].tolist(), strict=True)
        return [Hit(rank, *name, cosine, text=cosine) for rank, (name, cosine) in enumerate(found, 1)]

    def _hits_of_both(
        self, state: State, vector: np.ndarray, words: Words, weight: float, query: Query, itself: int = -1
    ) -> list[Hit]:
        allowed = None if query.label is None else self._labelled(state, query.label)
        matched = self._matched(state, words, query.label)
        found = state.searcher.fuse(vector[np.newaxis], matched, weight, query.k, allowed)
        kept = (found.cosines.astype(float) >= query.min_similarity) & (found.rows != itself)
        names = state.paths_and_labels(found.rows[kept].tolist())
        cosines = np.stack([found.cosines, found.visual, found.text], axis=1)[kept].tolist()  # (n, 3)
        return [Hit(rank, *name, *own) for rank, (name, own) in enumerate(zip(names, cosines, strict=True), 1)]

    def _matched(self, state: State, words: Words, label: str | None) -> Matched:
        """Find the images that share a word, of a class, without those that were removed."""
        rows, cosines = self._tagged().match(words)
        rows = state.now(rows)
        kept = (rows >= 0) if label is None else (rows >= 0) & self._labelled(state, label)[rows]
        rows, cosines = rows[kept], cosines[kept]
        order = np.argsort(rows)
        return Matched(rows[order], cosines[order])

    @property
    def _reader(self) -> Reader | None:
        """The text encoder; None where texts are compared with tags."""
        return self._read if self.tags is None else None

    def _said(self, text: str | None) -> np.ndarray | None:
        """Embed and refine a text: float32 (1, d); None where texts are compared with tags."""
        if text is None or self._reader is None:
            return None
        return self.refinement.project(self.checked(self._reader(text)[np.newaxis]))

    def _own_words(self, path: str) -> Words | None:
        row = self.names.row(path)
        return self.tags.own(row) if self.tags and row is not None else None

    def _tagged(self) -> Tags:
        if self.tags is None:
            raise TextError(
                "the index has no tags, so a text finds nothing; set index.tags.file and: dvc repro index; or take a "
                "network that reads texts (docs/embeddings.md)"
            )
        return self.tags

    def _weight(self, given: float | None, words: bool) -> float:
        """Choose the weight of words; 0 where there are none."""
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
        """Mark the rows that have a label: bool (N + M,)."""
        fresh = np.array([event.label == label for event in state.events], dtype=bool)
        allowed: np.ndarray = np.concatenate([self._of_label(label), fresh]) & state.present
        if not allowed.any():
            known = state.labels()
            raise LabelError(f"no image is labelled {label!r}; {closest(label, known) if known else 'none is at all'}")
        return allowed

    def _find_label(self, label: str) -> np.ndarray:
        return np.asarray(self.names.labels == label)

    def _advise(self) -> None:
        try:
            state = self.state
        except LookalikeError:  # the change is made all the same; what is wrong since, the next look says
            return
        changed = int(np.count_nonzero(~state.present[: len(self.index)])) + len(state.added)
        if changed > REBUILD_SHARE * len(self.index) and not self._advised:
            self._advised = True
            logger.info(
                f"{changed} changes since {len(self.index)} images were indexed; a search gets slower with them; "
                "where the images are a folder of yours, fold them and rebuild: lookalike fold, dvc repro"
            )
