"""A built index, open: searched by vectors or by its own images, and changed without a rebuild.

What is built stays as it is, in data/index; what changes is in a journal in data/changes, which no stage writes. Every
search sees every change that was committed before it began, by this process or another.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from lookalike.base.errors import LookalikeError, closest
from lookalike.base.vectors import unit_length
from lookalike.collection.hits import Hit
from lookalike.collection.journal import Event
from lookalike.collection.live_index import Embed, Following
from lookalike.collection.names import check_name
from lookalike.collection.snapshot import State
from lookalike.index import build, tags
from lookalike.index.searcher import Matched
from lookalike.index.tags import Tags, TextError, Words
from lookalike.runtimes.text_encoder import Reader

LABELS = 64  # classes whose rows are remembered, a byte an image each
SAID_WEIGHT = 0.5  # of a text that the network reads, beside a picture
REBUILD_SHARE = 0.1  # of the images changed since the index was built, from which a rebuild is advised


class LabelError(LookalikeError):
    """A class that no image has: the question is at fault, not the collection."""


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
        self._following = Following(folder, changes, tell, embed)
        self.fingerprint, self.embedding = self._following.fingerprint, self._following.embedding
        self.journal, self.refinement = self._following.journal, self._following.refinement
        self._index, self._names = self._following.index, self._following.names
        self.tags: Tags | None = tags.load(folder)
        self._tell, self._read = tell, read
        self._advised = False
        self._of_label = lru_cache(LABELS)(self._find_label)

    @property
    def state(self) -> State:
        """The collection now. Raises Rebuilt if another index has taken the place of the one that was opened."""
        return self._following.state

    def search(
        self, features: np.ndarray | None, k: int, min_similarity: float = -1, label: str | None = None,
        text: str | None = None, text_weight: float | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        """Find the k most similar images of each query, best first.

        features        float32, (Q, D), as the network gives them; None for one query of words alone.
        k               1 or more; where there are fewer images, all of them.
        min_similarity  the least cosine of a hit.
        label           search this class only; then fewer than k hits are all of the class.
        text            words that the images' tags are compared with, too; alone, or at weight 1, it finds only what
                        shares a word. Where there are no tags and the network reads texts: with the images themselves.
        text_weight     of the words beside a picture, 0 to 1; `text_weight` by default.

        Raises LookalikeError for a k below 1 and an empty collection, LabelError for a class that no image has,
        TextError for words that no image has.
        """
        state = self.state
        k = min(k, len(state))
        build.check_k(k, len(state))
        weight = self._weight(text_weight, text is not None)
        said = self._said(text)
        words = None if text is None or said is not None else self._tagged().query(text)
        if features is not None:
            queries = self.refinement.project(self._following.checked(features))
            build.check_queries(queries, k, len(state), self._index.dim)
            queries = queries if said is None else mixed(queries, said, weight)
        elif said is not None and text_weight is None:
            queries = said
        elif words is not None and text_weight is None:
            return [self._hits_of_words(state, words, k, min_similarity, label)]
        else:
            raise TextError("a search needs a picture, or a text without a weight, or both; give one")
        if words is None or not weight:
            return self._hits(state, queries, k, min_similarity, label)
        return [self._hits_of_both(state, query, words, weight, k, min_similarity, label) for query in queries]

    def similar(
        self, path: str, k: int, min_similarity: float = -1, label: str | None = None,
        text: str | None = None, text_weight: float | None = None,
    ) -> list[Hit]:  # fmt: skip
        """Find the k most similar images of one of the collection, itself left out; of fewer others, all.

        text         words beside it, as in `search`; None for its own tags, if it has some.
        text_weight  of the words, 0 to 1; `text_weight` by default.
        """
        state = self.state
        row = state.row(path)
        if len(state) == 1:
            raise LookalikeError(f"{path} is the only image of the collection, so none can be like it; add others")
        if k < 1:
            raise LookalikeError(f"k is {k}; choose 1 or more")
        k = min(k, len(state) - 1)
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
        return self._reader is not None

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
        feature = self._following.checked(feature[np.newaxis])[0]
        with self._following.changing() as (state, writer):
            if path in state and not replace:
                raise LookalikeError(f"{path} is in the collection already; give another name, or replace it")
            vector = self._following.join(state, feature, path)
            writer.append(Event(path, label, image, vector, feature), content)
        self._advise()

    def remove(self, paths: list[str]) -> None:
        """Take images out, all or, where one is unknown, none."""
        with self._following.changing() as (state, writer):
            for path in paths:
                state.row(path)  # raises where there is none
            for path in paths:
                writer.append(Event(path))
        self._advise()

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

    @property
    def _reader(self) -> Reader | None:
        """What embeds a text; None where tags are what it is compared with."""
        return self._read if self.tags is None else None

    def _said(self, text: str | None) -> np.ndarray | None:
        """A text as the network sees it, refined: float32 (1, d); None where tags are what it is compared with."""
        if text is None or self._reader is None:
            return None
        return self.refinement.project(self._following.checked(self._reader(text)[np.newaxis]))

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
            raise LabelError(f"no image is labelled {label!r}; {closest(label, known) if known else 'none is at all'}")
        return allowed

    def _find_label(self, label: str) -> np.ndarray:
        return np.asarray(self._names.labels == label)

    def _advise(self) -> None:
        try:
            state = self.state
        except LookalikeError:  # the change is made all the same; what is wrong since, the next look says
            return
        changed = int(np.count_nonzero(~state.present[: len(self._index)])) + len(state.added)
        if changed > REBUILD_SHARE * len(self._index) and not self._advised:
            self._advised = True
            self._tell(
                f"{changed} changes since {len(self._index)} images were indexed; a search gets slower with them; "
                "where the images are a folder of yours, fold them and rebuild: lookalike fold, dvc repro"
            )
