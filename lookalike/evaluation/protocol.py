"""Split of a collection into queries and the gallery that they are searched in."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED, Section


class Settings(Section, frozen=True):
    """Section `protocol` of params.yaml."""

    kind: Literal["holdout", "leave-one-out", "lists"]
    fraction: Annotated[float, Meta(gt=0, lt=1)]
    seed: Annotated[int, Meta(ge=0)]
    queries: str
    gallery: str


@dataclass(frozen=True)
class Split:
    """A split into queries and gallery.

    queries       int64, (Q,), row numbers in the collection, sorted.
    gallery       int64, (N,), likewise.
    exclude       int64, (Q, m): positions in the gallery that a query must neither find nor use, padded with -1.
    unmeasurable  the reason if quality cannot be measured, otherwise "".
    notes         sentences that a reader of the figures should know.
    """

    queries: np.ndarray
    gallery: np.ndarray
    exclude: np.ndarray
    unmeasurable: str
    notes: tuple[str, ...]

    @property
    def visible(self) -> int:
        """Number of gallery images that every query may find: the minimum over queries."""
        return len(self.gallery) - int((self.exclude >= 0).sum(axis=1).max(initial=0))


def check_fair(result: Split, ks: list[int], fitted: list[str]) -> None:
    """Raise LookalikeError if a figure is undefined, or if a query influences the gallery that it is searched in.

    ks      ranks of the figures.
    fitted  names of the settings that make the gallery's vectors depend on one another.
    """
    if not result.unmeasurable and max(ks) > result.visible:
        raise LookalikeError(f"evaluate.k has {max(ks)}, but the gallery has {result.visible} images; lower it")
    if (result.exclude >= 0).any() and fitted:
        names = " and ".join(f"index.refine.{name}" for name in fitted)
        raise LookalikeError(
            f"with protocol.kind leave-one-out every query is in the gallery that {names} would be fitted on, so it "
            "would influence its own ranking; set them to 0, or protocol.kind to holdout"
        )


def split(paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, settings: Settings) -> Split:
    """Split a collection, given as str (N,) arrays, into queries and gallery.

    holdout        Of each class with C >= 2 images, those whose hash(seed, image bytes) is smallest become queries,
                   C x fraction of them, rounded, at least one and never all; all others are the gallery. The hash
                   depends on nothing but the image, so adding one image moves at most one other of its class.
    leave-one-out  Every image is a query, searched among all others.
    lists          The files `queries` and `gallery` name them; without the latter, all others are the gallery.

    Byte-identical images: holdout draws them together within a class, and keeps them in the gallery if their labels
    differ; lists removes copies of a query from the gallery; leave-one-out hides them from the query. An image without
    a label, or without another image of its class to find, is never a query. `notes` counts each case.

    If nothing can be measured (no labels, no class of two), `fraction` of all images are queries, so that examples and
    latency have queries, and `unmeasurable` gives the reason.
    """
    lists = {"queries": settings.queries, "gallery": settings.gallery}
    for name, file in lists.items():
        if (file != UNUSED) > (settings.kind == "lists"):
            raise LookalikeError(f"protocol.{name} is {file}, but protocol.kind is {settings.kind}; set it to lists")
    if settings.kind == "lists":
        return _listed(paths, labels, sha256, settings)
    if settings.kind == "leave-one-out":
        result = _each(labels, sha256)
        if len(result.queries):
            return result
    return _held_out(labels, sha256, settings)


def _held_out(labels: np.ndarray, sha256: np.ndarray, settings: Settings) -> Split:
    classes = sorted(set(labels.tolist()) - {""})
    labels_of: dict[str, set[str]] = {}
    for digest, label in zip(sha256.tolist(), labels.tolist(), strict=True):
        labels_of.setdefault(digest, set()).add(label)
    ambiguous = np.array([len(labels_of[digest]) > 1 for digest in sha256.tolist()], dtype=bool)
    is_query = np.zeros(len(labels), dtype=bool)
    for label in classes:
        is_query[_draw(np.flatnonzero(labels == label), sha256, settings, never=ambiguous)] = True
    distinct, copies = np.unique(sha256, return_counts=True)
    copied = np.isin(sha256, distinct[copies > 1]) & ~ambiguous
    notes = _count(ambiguous, "are byte-identical to one with another label: gallery only")
    notes += _count(copied, "are byte-identical to another of their class: drawn together")
    if classes:
        notes += _count(labels == "", "have no label: gallery only, relevant to no query")
        single = [label for label in classes if (labels == label).sum() == 1]
        if single:
            names = ", ".join(single[:5]) + ", ..." * (len(single) > 5)
            notes.append(f"{len(single)} classes have one image, which cannot be a query: {names}")
    unmeasurable = ""
    if not is_query.any():
        unmeasurable = "no class has two different images" if classes else "the images have no labels"
        is_query[_draw(np.arange(len(labels)), sha256, settings, never=np.zeros(len(labels), dtype=bool))] = True
    queries = np.flatnonzero(is_query)
    return Split(queries, np.flatnonzero(~is_query), np.zeros((len(queries), 0), np.int64), unmeasurable, tuple(notes))


def _draw(members: np.ndarray, sha256: np.ndarray, settings: Settings, never: np.ndarray) -> np.ndarray:
    wanted = min(max(1, int(len(members) * settings.fraction + 0.5)), len(members) - 1)
    groups: dict[str, list[int]] = {}  # rows of byte-identical images, by their hash
    for row in members[~never[members]].tolist():
        key = hashlib.sha256(f"{settings.seed}:{sha256[row]}".encode()).hexdigest()
        groups.setdefault(key, []).append(row)
    drawn: list[int] = []
    for key in sorted(groups):
        if len(drawn) + len(groups[key]) <= wanted:  # skip a group of copies that would exceed the number
            drawn += groups[key]
    return np.array(drawn, dtype=np.int64)


def _each(labels: np.ndarray, sha256: np.ndarray) -> Split:
    everything = np.arange(len(labels))
    notes = _count(labels == "", "have no label: gallery only, relevant to no query")
    return _with_something_to_find(everything[labels != ""], everything, labels, sha256, notes)


def _listed(paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, settings: Settings) -> Split:
    if settings.queries == UNUSED:
        raise LookalikeError("protocol.kind is lists, but protocol.queries names no file; set it to a list of paths")
    queries = _rows(paths, settings.queries, "queries")
    if settings.gallery == UNUSED:
        gallery = np.setdiff1d(np.arange(len(paths)), queries)
    else:
        gallery = _rows(paths, settings.gallery, "gallery")
        both = np.intersect1d(queries, gallery)
        if len(both):
            raise LookalikeError(f"{len(both)} paths are in protocol.queries and in protocol.gallery, the first "
                                 f"{str(paths[both[0]])!r}; a query must not be in its own gallery")  # fmt: skip
    copies = np.isin(sha256[gallery], sha256[queries])
    notes = [
        *_count(copies, "are byte-identical to a listed query: left out of the gallery"),
        *_count(labels[queries] == "", "listed as queries have no label: left out"),
    ]
    gallery = gallery[~copies]  # removed, not only hidden: nothing fitted on the gallery may see a query's pixels
    result = _with_something_to_find(queries[labels[queries] != ""], gallery, labels, sha256, notes)
    if not len(result.queries):
        raise LookalikeError(f"protocol.queries {settings.queries}: none of its images has another of its class in the "
                             "gallery, so nothing can be measured")  # fmt: skip
    return result


def _with_something_to_find(
    queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray, sha256: np.ndarray, notes: list[str]
) -> Split:
    """Exclude a query and its byte-identical copies from its own ranking; drop queries with no relevant image left."""
    position_of: dict[str, list[int]] = {}
    for position, digest in enumerate(sha256[gallery].tolist()):
        position_of.setdefault(digest, []).append(position)
    copies = [position_of.get(digest, []) for digest in sha256[queries].tolist()]
    exclude = np.full((len(queries), max(map(len, copies), default=0)), -1, dtype=np.int64)
    for row, positions in enumerate(copies):
        exclude[row, : len(positions)] = positions
    gallery_labels = labels[gallery]
    classes, class_sizes = np.unique(gallery_labels, return_counts=True)
    sizes = dict(zip(classes.tolist(), class_sizes.tolist(), strict=True))
    own = labels[queries]
    hidden = ((exclude >= 0) & (gallery_labels[exclude] == own[:, None])).sum(axis=1)
    lonely = np.array([sizes.get(label, 0) for label in own.tolist()], dtype=np.int64) <= hidden
    itself = np.isin(queries, gallery)
    copied = (exclude >= 0).sum(axis=1) > itself
    notes = [
        *notes,
        *_count(copied, "have byte-identical copies in the gallery: left out of their rankings"),
        *_count(lonely, "have no other image of their class to find: not queries"),
    ]
    return Split(queries[~lonely], gallery, exclude[~lonely], "", tuple(notes))


def _rows(paths: np.ndarray, file: str, name: str) -> np.ndarray:
    """Read a list of paths, one per line, or a CSV with a column `path`. Returns their rows, sorted and unique."""
    try:
        lines = [line for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        header = next(csv.reader(lines[:1]), [])
        plain = [line.strip() for line in lines]
        wanted = [row["path"] or "" for row in csv.DictReader(lines)] if "path" in header else plain
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LookalikeError(f"protocol.{name} {file} cannot be read: {error}") from None
    row_of = {path: row for row, path in enumerate(paths.tolist())}
    unknown = [path for path in wanted if path not in row_of]
    if unknown:
        raise LookalikeError(
            f"protocol.{name} {file}: {len(unknown)} of {len(wanted)} paths are not in the collection, the first "
            f"{unknown[0]!r}; paths are as in image_paths.npy"
        )
    if not wanted:
        raise LookalikeError(f"protocol.{name} {file} names no image")
    return np.unique([row_of[path] for path in wanted])


def _count(which: np.ndarray, what: str) -> list[str]:
    return [f"{which.sum()} images {what}"] if which.any() else []
