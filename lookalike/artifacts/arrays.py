"""Images and embeddings with their paths and labels, aligned row by row. Only this module reads and writes them."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from lookalike.base.errors import LookalikeError

FIT_FILE = "fit.txt"
FITS = ("crop", "pad", "stretch")
STRINGS = ("image_paths.npy", "labels.npy", "sha256.npy")
BLOCK = 1 << 21  # bytes of pixels read at a time


@dataclass(frozen=True)
class Images:
    """Output of `preprocess`. Row i of each array is the same image; rows are sorted by path.

    pixels  uint8, (N, S, S, 3), memory-mapped.
    paths   str, (N,), relative to data/raw, `/`-separated.
    labels  str, (N,), "" where there is none.
    sha256  str, (N,), hex digest of the original file's bytes.
    fit     how each picture was made square: pad, stretch or crop.
    """

    pixels: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    sha256: np.ndarray
    fit: str


@dataclass(frozen=True)
class Collection:
    """Output of `extract`. Row i of each array is the same image; rows are sorted by path.

    features  float32, (N, D), memory-mapped.
    paths     str, (N,).
    labels    str, (N,), "" where there is none.
    """

    features: np.ndarray
    paths: np.ndarray
    labels: np.ndarray


def load_images(folder: Path) -> Images:
    """Open the output of `preprocess`. Raises LookalikeError unless its arrays are aligned, with the right dtypes."""
    names = ("images.npy", "image_paths.npy", "labels.npy", "sha256.npy")
    pixels, paths, labels, sha256 = (_open(folder / name, "preprocess") for name in names)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
        raise LookalikeError(
            f"{folder}/images.npy is {pixels.dtype} {pixels.shape}, not uint8 (N, S, S, 3); "
            "rebuild: dvc repro --force preprocess"
        )
    _check_aligned(folder, "preprocess", images=pixels, image_paths=paths, labels=labels, sha256=sha256)
    return Images(pixels, paths, labels, sha256, _load_fit(folder / FIT_FILE))


def load_collection(folder: Path) -> Collection:
    """Open the output of `extract`. Raises LookalikeError unless its arrays are aligned, with the right dtypes."""
    names = ("features.npy", "image_paths.npy", "labels.npy")
    features, paths, labels = (_open(folder / name, "extract") for name in names)
    if features.dtype != np.float32 or features.ndim != 2:
        raise LookalikeError(
            f"{folder}/features.npy is {features.dtype} {features.shape}, not float32 (N, D); "
            "rebuild: dvc repro --force extract"
        )
    _check_aligned(folder, "extract", features=features, image_paths=paths, labels=labels)
    return Collection(features, paths, labels)


def map_names(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Open the paths and labels of a verified index: str (N,) each, memory-mapped, contents not checked again."""
    names = ("image_paths.npy", "labels.npy")
    paths, labels = (_open(folder / name, "index", mapped=True) for name in names)
    return paths, labels


def check_same_images(images: Images, collection: Collection) -> None:
    """Raise LookalikeError unless images and features name the same images in the same order."""
    if not np.array_equal(images.paths, collection.paths):
        raise LookalikeError(
            f"features of {len(collection.paths)} images but pixels of {len(images.paths)}, or in another order; "
            "they come from different runs: dvc repro --force extract"
        )


def pixel_blocks(folder: Path) -> Iterator[np.ndarray]:
    """Yield the pixels that `preprocess` wrote as blocks of uint8 (b, S, S, 3), at most 2 MB or one image each.

    The file is read, not memory-mapped, because mapped pages count as the process's memory, which should not grow with
    N.
    """
    pixels = _open(folder / "images.npy", "preprocess")
    count, *shape = pixels.shape
    rows = max(1, BLOCK // pixels[:1].nbytes)
    with (folder / "images.npy").open("rb") as file:
        file.seek(-pixels.nbytes, os.SEEK_END)
        for start in range(0, count, rows):
            block = np.fromfile(file, np.uint8, min(rows, count - start) * math.prod(shape))
            yield block.reshape(-1, *shape)


def save_strings(path: Path, strings: list[str]) -> None:
    """Save strings as a fixed-width unicode array, (N,), readable with `allow_pickle=False`."""
    np.save(path, np.array(strings, dtype=np.str_), allow_pickle=False)


class ArrayWriter:
    """Writer of an .npy file of known shape, rows in any order; it holds no rows in memory.

    with ArrayWriter(path, (N, D), np.float32) as array: array.write(rows, block)   # rows (n,), block (n, D)
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        """Create the file with all rows zero. Raises LookalikeError if the disk has no room for it."""
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._file = path.open("wb")
        _write_header(self._file, shape, self.dtype)
        self._start = self._file.tell()
        self._row = self.dtype.itemsize * math.prod(shape[1:])  # bytes
        size = self._start + self._row * shape[0]
        self._file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # a full disk is reported now, not after hours
            try:
                os.posix_fallocate(self._file.fileno(), 0, size)
            except OSError as error:
                self._file.close()
                raise LookalikeError(
                    f"{path}: {size / 1e9:.3f} GB cannot be written there ({error.strerror}); make room, and run again"
                ) from None

    def write(self, rows: np.ndarray, block: np.ndarray) -> None:
        """Write `block`, (n, *shape[1:]) of the file's dtype, to the rows with these numbers, int64 (n,)."""
        if block.shape != (len(rows), *self.shape[1:]) or block.dtype != self.dtype:
            raise ValueError(f"block is {block.dtype} {block.shape}, rows are {self.dtype} {self.shape[1:]}")
        for row, values in zip(rows.tolist(), block, strict=True):
            self._file.seek(self._start + self._row * row)
            self._file.write(np.ascontiguousarray(values).data)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class RowWriter:
    """Writer of an .npy file whose number of rows is not known in advance.

    with RowWriter(path, (S, S, 3), np.uint8) as rows: rows.append(block)   # block (B, S, S, 3)
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        """Create the file; it holds an empty array until the writer is closed."""
        self.shape = (0, *row_shape)
        self.dtype = np.dtype(dtype)
        self._file = path.open("wb")
        _write_header(self._file, self.shape, self.dtype)

    def append(self, block: np.ndarray) -> None:
        """Append rows, (B, *row_shape), of the file's dtype."""
        if block.shape[1:] != self.shape[1:] or block.dtype != self.dtype:
            raise ValueError(f"block is {block.dtype} {block.shape}, rows are {self.dtype} {self.shape[1:]}")
        self._file.write(np.ascontiguousarray(block).data)
        self.shape = (self.shape[0] + len(block), *self.shape[1:])

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.seek(0)
        _write_header(self._file, self.shape, self.dtype)
        self._file.close()


def _load_fit(path: Path) -> str:
    try:
        fit = path.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro --force preprocess") from None
    if fit not in FITS:
        raise LookalikeError(f"{path} says {fit!r}, not {', '.join(FITS)}; rebuild: dvc repro --force preprocess")
    return fit


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # numpy reserves room for axis 0 to grow
    file.flush()


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Open an .npy file, memory-mapped or whole. Raises FileNotFoundError, or ValueError for any other problem."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy parses the header as Python, and it may claim any size: TokenError, MemoryError
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("an archive of arrays")
    return array


def _open(path: Path, stage: str, *, mapped: bool = False) -> np.ndarray:
    try:
        array = read_array(path, mapped=mapped or path.name in ("images.npy", "features.npy"))
        if path.name in STRINGS and (array.dtype.kind != "U" or array.ndim != 1):
            raise ValueError(f"{array.dtype} {array.shape}, not strings (N,)")
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro {stage} (or fetch it: dvc pull)") from None
    except ValueError as error:
        raise LookalikeError(
            f"{path} is not a readable .npy file ({error}); rebuild: dvc repro --force {stage}"
        ) from None
    return array


def _check_aligned(folder: Path, stage: str, **arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise LookalikeError(f"{folder}: {counts}; they are written together, so rebuild: dvc repro --force {stage}")
    paths = arrays["image_paths"]
    if not (paths[:-1] < paths[1:]).all():
        raise LookalikeError(f"{folder}/image_paths.npy is not sorted; rebuild: dvc repro --force {stage}")
