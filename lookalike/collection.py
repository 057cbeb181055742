"""Images and embeddings with their paths and labels, aligned row by row; the only reader and writer of those arrays."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from lookalike.errors import LookalikeError


@dataclass(frozen=True)
class Images:
    """What `preprocess` wrote. Row i of each array is the same image; rows are sorted by path.

    pixels  uint8, (N, S, S, 3), memory-mapped.
    paths   str, (N,), relative to data/raw, `/`-separated.
    labels  str, (N,), "" where there is none.
    sha256  str, (N,), of the original file's bytes.
    """

    pixels: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    sha256: np.ndarray


@dataclass(frozen=True)
class Collection:
    """What `extract` wrote. Row i of each array is the same image; rows are sorted by path.

    features  float32, (N, D), memory-mapped.
    paths     str, (N,).
    labels    str, (N,), "" where there is none.
    """

    features: np.ndarray
    paths: np.ndarray
    labels: np.ndarray


def load_images(folder: Path) -> Images:
    """Open what `preprocess` wrote, checked for alignment."""
    names = ("images.npy", "image_paths.npy", "labels.npy", "sha256.npy")
    pixels, paths, labels, sha256 = (_open(folder / name, "preprocess") for name in names)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
        raise LookalikeError(f"{folder}/images.npy is {pixels.dtype} {pixels.shape}, not uint8 (N, S, S, 3); "
                             "rebuild: dvc repro --force preprocess")  # fmt: skip
    _check_aligned(folder, "preprocess", images=pixels, image_paths=paths, labels=labels, sha256=sha256)
    return Images(pixels, paths, labels, sha256)


def load_collection(folder: Path) -> Collection:
    """Open what `extract` wrote, checked for alignment and dtype."""
    names = ("features.npy", "image_paths.npy", "labels.npy")
    features, paths, labels = (_open(folder / name, "extract") for name in names)
    if features.dtype != np.float32 or features.ndim != 2:
        raise LookalikeError(f"{folder}/features.npy is {features.dtype} {features.shape}, not float32 (N, D); "
                             "rebuild: dvc repro --force extract")  # fmt: skip
    _check_aligned(folder, "extract", features=features, image_paths=paths, labels=labels)
    return Collection(features, paths, labels)


def check_same_images(images: Images, collection: Collection) -> None:
    """Raise LookalikeError unless images and features name the same images in the same order."""
    if not np.array_equal(images.paths, collection.paths):
        raise LookalikeError(f"features of {len(collection.paths)} images but pixels of {len(images.paths)}, or in "
                             "another order; they come from different runs: dvc repro --force extract")  # fmt: skip


def save_strings(path: Path, strings: list[str]) -> None:
    """Save as fixed-width unicode, (N,), readable with `allow_pickle=False`."""
    np.save(path, np.array(strings, dtype=np.str_), allow_pickle=False)


class RowWriter:
    """Write an .npy file row by row, its number of rows known only at the end.

    with RowWriter(path, (S, S, 3), np.uint8) as rows: rows.append(block)   # block (B, S, S, 3)
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        """Create the file; it reads as an empty array until the writer is closed."""
        self.shape = (0, *row_shape)
        self.dtype = np.dtype(dtype)
        self._file = path.open("wb")
        self._write_header()

    def __len__(self) -> int:
        return self.shape[0]

    def append(self, block: np.ndarray) -> None:
        """Append rows: (B, *row_shape), of the file's dtype."""
        if block.shape[1:] != self.shape[1:] or block.dtype != self.dtype:
            raise ValueError(f"block is {block.dtype} {block.shape}, rows are {self.dtype} {self.shape[1:]}")
        self._file.write(np.ascontiguousarray(block).data)
        self.shape = (self.shape[0] + len(block), *self.shape[1:])

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)  # numpy reserves room for axis 0 to grow
        self._file.flush()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()


def _open(path: Path, stage: str) -> np.ndarray:
    try:
        mode: Literal["r"] | None = "r" if path.name in ("images.npy", "features.npy") else None
        return np.asanyarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro {stage} (or fetch it: dvc pull)") from None
    except (ValueError, EOFError) as error:
        raise LookalikeError(
            f"{path} is not a readable .npy file ({error}); rebuild: dvc repro --force {stage}"
        ) from None


def _check_aligned(folder: Path, stage: str, **arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise LookalikeError(f"{folder}: {counts}; they are written together, so rebuild: dvc repro --force {stage}")
    paths = arrays["image_paths"]
    if not (paths[:-1] < paths[1:]).all():
        raise LookalikeError(f"{folder}/image_paths.npy is not sorted; rebuild: dvc repro --force {stage}")
