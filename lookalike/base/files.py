"""Atomic writes: readers never see a half-written file, not even after a killed run."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # suffix of unfinished files and folders; Git and DVC ignore it


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` when the block succeeds.

    On an exception, `path` is unchanged and nothing else is left behind.
    """
    partial = path.with_name(path.name + PARTIAL)
    remove(partial)
    partial.mkdir(parents=True)
    try:
        with _named(path):
            yield partial
        remove(path)
        partial.replace(path)
    finally:
        remove(partial)


@contextmanager
def new_files(folder: Path, writer: str) -> Iterator[Path]:
    """Yield an empty folder whose files are moved into `folder` when the block succeeds; other files there stay.

    writer  a name unique to the caller; its next run finds and deletes what a killed run left under that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{writer}{PARTIAL}")
    remove(partial)
    partial.mkdir()
    try:
        with _named(folder):
            yield partial
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)
    finally:
        remove(partial)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file replaces `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with _named(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add `path` to an OSError without a file name, which is what most libraries raise when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or (error.errno is None and " requested and " not in str(error)):
            raise
        number = error.errno or errno.ENOSPC  # NumPy sets no errno: "12800 requested and 992 written"
        way_out = "make room, and run again; the previous content is unchanged"
        raise OSError(number, f"{os.strerror(number)} ({way_out})", str(path)) from None


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Write one JSON value so that it diffs well: two-space indent, key order kept, final newline."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Return the hex SHA-256 of every file in a folder by name, sorted."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}
