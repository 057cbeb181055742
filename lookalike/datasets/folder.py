"""The user's own images: one subfolder per class, or a CSV of path and label, or a flat folder without labels."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lookalike.base.csv_rows import rows
from lookalike.base.errors import LookalikeError
from lookalike.datasets.base import Item, Settings
from lookalike.images.decode import SUFFIXES

logger = logging.getLogger(__name__)


def items(settings: Settings) -> Iterator[Item]:
    """Yield the images below `download.folder`, sorted by path.

    Without `download.labels`, an image's class is the first folder of its path; images directly in the folder have no
    class. With it, the images are exactly those that the CSV lists, with its labels; an empty label means no class.
    """
    folder, labels = Path(settings.folder), labels_of(settings)
    if not labels:
        raise LookalikeError(f"{folder}: no image in it; looked for {' '.join(sorted(SUFFIXES))}, also in subfolders")
    for path in sorted(labels):
        try:
            path.encode()
        except UnicodeEncodeError:  # bytes of another encoding, which Python represents as lone surrogates
            raise LookalikeError(f"{folder}: the name {path!a} is not UTF-8; rename the file") from None
        yield Item(PurePosixPath(path), labels[path], (folder / path).read_bytes())


def labels_of(settings: Settings) -> dict[str, str]:
    """Return the label of each image below `download.folder` by path; "" for none."""
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise LookalikeError(
            f"download.folder is {settings.folder!r}, not a folder: set it to the folder of your images "
            "(-S download.folder=/path/to/images)"
        )
    return _from_csv(folder, settings.labels) if settings.labels else _from_folders(folder)


def _from_folders(folder: Path) -> dict[str, str]:
    labels: dict[str, str] = {}
    others: Counter[str] = Counter()
    for path in _files(folder):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES:
            others[path.suffix.lower() or "no ending"] += 1
            continue
        labels[relative.as_posix()] = relative.parts[0] if len(relative.parts) > 1 else ""
    if others:
        endings = ", ".join(f"{ending} {count}" for ending, count in sorted(others.items()))
        logger.warning(f"{folder}: files whose ending is not an image's are left out: {endings}")
    return labels


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder except hidden ones; follow links, but visit each folder only once."""
    seen = set()
    for name, subfolders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        if here.resolve() in seen:  # a link to a visited folder, perhaps in a circle
            subfolders.clear()
            continue
        seen.add(here.resolve())
        subfolders[:] = sorted(each for each in subfolders if not each.startswith("."))
        yield from (here / file for file in files if not file.startswith("."))


def _from_csv(folder: Path, name: str) -> dict[str, str]:
    table = folder / name
    if not table.is_file():
        raise LookalikeError(
            f"download.labels is {name!r}, but {table} does not exist; the file must be inside download.folder"
        )
    labels: dict[str, str] = {}
    for where, row in rows(table, ("path", "label")):
        path = _checked(folder, row["path"], where)
        if path in labels:
            raise LookalikeError(f"{where}: {path!r} is listed twice; an image has one label")
        labels[path] = row["label"].strip()
    return labels


def _checked(folder: Path, text: str, where: str) -> str:
    """Return a path of the CSV, normalised. Raises LookalikeError unless it names an image inside the folder."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise LookalikeError(f"{where}: path {text!r} must be relative and inside {folder}")
    if path.suffix.lower() not in SUFFIXES:
        raise LookalikeError(
            f"{where}: the ending of {str(path)!r} is not an image's; remove the line or rename the file"
        )
    file = folder / path
    try:
        there = file.is_file()
    except OSError as error:  # a name that is too long, a folder without permission
        raise LookalikeError(
            f"{where}: {str(file)!r} cannot be looked up: {error.strerror}; fix the path or remove the line"
        ) from None
    if not there:
        raise LookalikeError(f"{where}: {str(file)!r} does not exist; fix the path or remove the line")
    return str(path)


def origin(settings: Settings) -> str:
    """Return the folder's path, and the CSV's name if there is one."""
    return " ".join(filter(None, [settings.folder, settings.labels]))
