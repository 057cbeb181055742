"""Writing so that a reader, or a killed run, never finds half a file."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # git and DVC ignore this suffix: a killed run leaves nothing that either would notice


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well.

    On an exception `path` is as it was and nothing else is left behind.
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
    """Yield an empty folder whose files are moved into `folder` when the block ends well; others there stay.

    writer  a name by which the next run finds, and deletes, what a killed run left; one for each who writes there.
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
    """Yield a path to write to; it takes the place of `path` when the block ends well."""
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
    """Name `path` in an OSError of writing that names nothing: of a full disk, most libraries tell no more."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or (error.errno is None and " requested and " not in str(error)):
            raise
        number = error.errno or errno.ENOSPC  # NumPy tells no number: "12800 requested and 992 written"
        way_out = "make room, and run again; what was there is as it was"
        raise OSError(number, f"{os.strerror(number)} ({way_out})", str(path)) from None


def remove(path: Path) -> None:
    """Delete a file or a folder, or nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Write one value, readable and diffable: two-space indent, key order kept, final newline."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of every file in a folder, by name, sorted."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}
