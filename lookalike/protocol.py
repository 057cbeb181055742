"""Which images are queries and which are the gallery that they are searched in."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from lookalike.errors import LookalikeError
from lookalike.params import Section

UNUSED = "data/none"  # what params.yaml names where no file is wanted: DVC needs a tracked path


class Settings(Section):
    """Section `protocol` of params.yaml."""

    queries: str
    fraction: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Split:
    """Row numbers of queries and gallery, both sorted, and why quality cannot be measured ("" if it can)."""

    queries: np.ndarray
    gallery: np.ndarray
    unmeasurable: str
    notes: tuple[str, ...]  # what a reader of the figures should know, one sentence each


def split(paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, settings: Settings) -> Split:
    """Divide a collection into queries and gallery.

    paths, labels, sha256  str, (N,).

    With `queries` naming a file, its images are the queries and all others the gallery. Otherwise, of each class with
    C >= 2 images, those whose hash(seed, image bytes) is smallest become queries, C x fraction of them, rounded, at
    least one and never all. The hash depends on nothing but the image, so adding one image moves at most one other
    image of its class.

    Byte-identical images lie on one side: within a class they are drawn together, and where they carry different
    labels, all of them stay in the gallery. Images without a label are gallery, never queries.
    If there is nothing to measure against (no labels, no class of two), `fraction` of all images are queries, so that
    examples and latency still have some, and `unmeasurable` says why.
    """
    if settings.queries != UNUSED:
        return _listed(paths, labels, sha256, Path(settings.queries))
    notes = []
    classes = sorted(set(labels.tolist()) - {""})
    labels_of: dict[str, set[str]] = {}
    for digest, label in zip(sha256.tolist(), labels.tolist(), strict=True):
        labels_of.setdefault(digest, set()).add(label)
    ambiguous = np.array([len(labels_of[digest]) > 1 for digest in sha256.tolist()], dtype=bool)
    is_query = np.zeros(len(paths), dtype=bool)
    for label in classes:
        members = np.flatnonzero(labels == label)
        is_query[_draw(members, sha256, settings, never=ambiguous)] = True
    notes += _count(ambiguous, "are byte-identical to one with another label: gallery only")
    if classes:
        notes += _count(labels == "", "have no label: gallery only, relevant to no query")
        single = [label for label in classes if (labels == label).sum() == 1]
        if single:
            notes.append(f"{len(single)} classes have one image, which cannot be a query: {', '.join(single[:5])}"
                         + ", ..." * (len(single) > 5))  # fmt: skip
    unmeasurable = ""
    if not is_query.any():
        unmeasurable = "no class has two different images" if classes else "the images have no labels"
        is_query[_draw(np.arange(len(paths)), sha256, settings, never=np.zeros(len(paths), dtype=bool))] = True
    return Split(np.flatnonzero(is_query), np.flatnonzero(~is_query), unmeasurable, tuple(notes))


def _draw(members: np.ndarray, sha256: np.ndarray, settings: Settings, never: np.ndarray) -> np.ndarray:
    wanted = min(max(1, int(len(members) * settings.fraction + 0.5)), len(members) - 1)
    groups: dict[str, list[int]] = {}  # byte-identical images, keyed by their common hash
    for row in members[~never[members]].tolist():
        key = hashlib.sha256(f"{settings.seed}:{sha256[row]}".encode()).hexdigest()
        groups.setdefault(key, []).append(row)
    drawn: list[int] = []
    for key in sorted(groups):
        if len(drawn) >= wanted:
            break
        if len(drawn) + len(groups[key]) < len(members):  # at least one stays, or there is nothing to find
            drawn += groups[key]
    return np.array(drawn, dtype=np.int64)


def _listed(paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, file: Path) -> Split:
    try:
        wanted = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LookalikeError(f"protocol.queries {file} cannot be read: {error}") from None
    row_of = {path: row for row, path in enumerate(paths.tolist())}
    unknown = [path for path in wanted if path not in row_of]
    if unknown or not wanted:
        what = f"{len(unknown)} of {len(wanted)} paths are not in the collection, the first {unknown[0]!r}" \
            if unknown else "it names no image"  # fmt: skip
        raise LookalikeError(f"protocol.queries {file}: {what}; paths are as in image_paths.npy, one a line")
    is_query = np.zeros(len(paths), dtype=bool)
    is_query[[row_of[path] for path in wanted]] = True
    twin = ~is_query & np.isin(sha256, sha256[is_query])
    unlabelled = is_query & (labels == "")
    alone = is_query & ~np.isin(labels, labels[~is_query & ~twin])
    notes = [
        *_count(twin, "are byte-identical to a query: left out of the gallery"),
        *_count(unlabelled, "listed as queries have no label: left out"),
        *_count(alone & ~unlabelled, "listed as queries have no relevant image in the gallery: left out"),
    ]
    queries = np.flatnonzero(is_query & ~unlabelled & ~alone)
    if not len(queries):
        raise LookalikeError(f"protocol.queries {file}: none of its images has a relevant image in the gallery")
    return Split(queries, np.flatnonzero(~is_query & ~twin), "", tuple(notes))


def _count(which: np.ndarray, what: str) -> list[str]:
    return [f"{which.sum()} images {what}"] if which.any() else []
