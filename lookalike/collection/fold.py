"""Folding: writes the changes of a collection into its source folder, so that the next `dvc repro` has them.

They stay searchable from the journal until the index is rebuilt. An original that is replaced or removed is moved into
data/changes/originals, not deleted.
"""

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lookalike.base import csv_rows
from lookalike.base.errors import LookalikeError
from lookalike.base.files import file_digest, new_file
from lookalike.collection.collection import Gallery
from lookalike.collection.journal import Event
from lookalike.collection.names import check_name
from lookalike.datasets import registry
from lookalike.datasets.folder import labels_of

ORIGINALS = "originals"


@dataclass(frozen=True)
class Folded:
    """Counts of pictures written to the source folder, and of files taken out of it."""

    written: int
    removed: int


def fold(gallery: Gallery, settings: registry.Settings, tags_file: Path | None = None) -> Folded:
    """Make the source folder hold the images that a search finds.

    settings   section `download` of params.yaml: `dataset` must be `folder`.
    tags_file  CSV of path and text, of which lines of removed images are taken out; the others, and its order, stay.

    Everything is checked before the first file is written, and running it again after a kill completes it. Raises
    LookalikeError for another data set, for a path that would belong to another class there, and for a file of an added
    picture's name that is neither in the index nor from here.
    """
    if settings.dataset != "folder":
        raise LookalikeError(
            f"download.dataset is {settings.dataset}, whose images are not a folder of yours, so changes cannot be "
            "folded into it; they stay searchable, and are carried over when the index is rebuilt"
        )
    source = Path(settings.folder)
    labels_of(settings)  # raises where the folder or its CSV cannot be read
    if tags_file:
        list(csv_rows.rows(tags_file, ("path", "text")))  # likewise
    indexed = gallery.state.names  # and changes made to another index are carried over
    with gallery.journal.changing(gallery.fingerprint, gallery.embedding) as writer:
        latest = {event.path: event for event in writer.events(writer.folded())}
        ours: dict[str, set[str]] = {path: set() for path in latest}  # the pictures that a path ever had from here
        for event in writer.events(0):
            ours.get(event.path, set()).add(event.image)
        strange = {
            path
            for path in latest
            if indexed.row(path) is None and (source / path).exists() and file_digest(source / path) not in ours[path]
        }
        for event in latest.values():
            _check(event, source, settings, event.path in strange)
        latest = {path: event for path, event in latest.items() if path not in strange}  # neither file nor lines change
        originals = gallery.journal.path.parent / ORIGINALS
        written = [event for event in latest.values() if event.image]
        removed = [source / event.path for event in latest.values() if not event.image]
        for event in written:
            content, target = writer.image(event.image), source / event.path
            if target.is_file() and target.read_bytes() != content:
                _keep(target, originals / event.path)
            _write(target, content)
        if settings.labels and latest:
            _rewrite(source / settings.labels, latest)  # lists at no moment a file that is not there
        if tags_file and removed:
            _rewrite(tags_file, {path: event for path, event in latest.items() if not event.image})
        taken = [target for target in removed if target.is_file()]
        for target in taken:
            _keep(target, originals / target.relative_to(source))
            target.unlink()
        writer.set_folded()
    return Folded(len(written), len(taken))


def _check_path(path: str, label: str, settings: registry.Settings) -> None:
    """Raise LookalikeError for a path that a folder of images cannot have, or that would mean another class there."""
    check_name(path, label)
    parts = PurePosixPath(path)
    first = parts.parts[0] if len(parts.parts) > 1 else ""
    if settings.dataset == "folder" and not settings.labels and first != label:
        right = f"name it {label}/{parts.name}" if label else f"label it {first}"
        raise LookalikeError(
            f"path {path!r} with label {label!r}: in {settings.folder} the first folder of a path is its class; {right}"
        )


def _check(event: Event, source: Path, settings: registry.Settings, strange: bool) -> None:
    if not event.image:
        return
    _check_path(event.path, event.label, settings)
    if strange:
        raise LookalikeError(
            f"{source / event.path} exists with other content; nothing was folded: move it away, or "
            f"remove {event.path} from the collection and add it under another name"
        )


def _keep(original: Path, kept: Path) -> None:
    """Copy a file away, under a name that is free; source and project may lie on different disks."""
    name, number = kept.name, 1
    while kept.exists():
        kept, number = kept.with_name(f"{name}.{number}"), number + 1
    _write(kept, original.read_bytes())


def _write(target: Path, content: bytes) -> None:
    """Write a file that a power cut leaves whole: the journal, once it says `folded`, may forget the picture."""
    with new_file(target) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if not hasattr(os, "O_DIRECTORY"):  # Windows, which opens no folder
        return
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # its name too
    finally:
        os.close(folder)


def _rewrite(file: Path, latest: dict[str, Event]) -> None:
    """Bring a CSV of paths up to date, their label too; its other columns and its order stay."""
    columns, *lines = csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
    columns = [column.strip() for column in columns]
    place = {column: number for number, column in enumerate(columns)}  # of two of a name the last, as table.rows has it
    rows = {str(PurePosixPath(line[place["path"]])): line for line in lines if line}
    for event in latest.values():
        if event.image:
            row = rows.setdefault(event.path, [""] * len(columns))
            row[place["path"]], row[place["label"]] = event.path, event.label
        else:
            rows.pop(event.path, None)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([columns, *rows.values()])
    _write(file, out.getvalue().encode())
