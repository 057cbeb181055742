"""Names of a collection's images: which paths are allowed, and which row has which."""

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.images.decode import SUFFIXES


def check_name(path: str, label: str) -> None:
    """Raise LookalikeError for a path that no folder of images can have."""
    parts = PurePosixPath(path)
    try:
        (path + label).encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python carries as lone surrogates
        raise LookalikeError(f"path {path!a} or label {label!a} is not UTF-8; give another") from None
    if parts.is_absolute() or ".." in parts.parts or str(parts) != path or not parts.name or "\0" in path:
        raise LookalikeError(f"path {path!r} must be relative, without '..'")
    if parts.suffix.lower() not in SUFFIXES:
        raise LookalikeError(f"path {path!r} must end as an image does: {' '.join(sorted(SUFFIXES))}")
    if any(part.startswith(".") for part in parts.parts):
        raise LookalikeError(f"path {path!r} has a part that begins with a dot, which is left out of a folder")


@dataclass(frozen=True)
class Names:
    """Path and label of the rows of an index, memory-mapped, sorted by path: str, (N,) each."""

    paths: np.ndarray
    labels: np.ndarray

    def row(self, path: str) -> int | None:
        """Find the row of a path; None if there is none."""
        if np.array(path).dtype.itemsize > self.paths.dtype.itemsize:
            return None
        row = int(np.searchsorted(self.paths, np.array(path, self.paths.dtype)))
        return row if row < len(self.paths) and self.paths[row] == path else None
