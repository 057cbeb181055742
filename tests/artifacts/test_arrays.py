"""The arrays stay aligned, streamable and readable without pickle."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lookalike.artifacts.arrays import (
    ArrayWriter,
    Collection,
    Images,
    RowWriter,
    check_same_images,
    load_collection,
    load_images,
    save_strings,
)
from lookalike.base.errors import LookalikeError


def write_features(folder: Path, features: np.ndarray, paths: list[str], labels: list[str]) -> Path:
    np.save(folder / "features.npy", features)
    save_strings(folder / "image_paths.npy", paths)
    save_strings(folder / "labels.npy", labels)
    return folder


def test_rows_written_one_by_one_read_as_one_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    blocks = [np.full((n, 2, 3), n % 251, dtype=np.uint8) for n in (1, 5, 1000)]
    with RowWriter(path, (2, 3), np.uint8) as rows:
        assert np.load(path).shape == (0, 2, 3)
        for block in blocks:
            rows.append(block)
    assert np.array_equal(np.load(path, allow_pickle=False), np.concatenate(blocks))
    assert np.load(path, mmap_mode="r").shape == (1006, 2, 3)


@pytest.mark.parametrize("reserved", [True, False], ids=["with its room reserved", "on a system that reserves none"])
def test_rows_are_written_in_any_order_and_others_are_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserved: bool
) -> None:
    if not reserved:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with ArrayWriter(tmp_path / "x.npy", (4, 2), np.float32) as array:
        array.write(np.array([3, 0]), np.array([[5, 6], [7, 8]], np.float32))
        array.write(np.array([1]), np.array([[9, 9]], np.float32))
    assert np.load(tmp_path / "x.npy").tolist() == [[7, 8], [9, 9], [0, 0], [5, 6]]


def test_a_disk_without_room_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    message = r"x\.npy: 0\.004 GB cannot be written there \(No space left on device\); make room, and run again"
    with pytest.raises(LookalikeError, match=message):
        ArrayWriter(tmp_path / "x.npy", (1000, 1000), np.float32)


def test_a_block_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    with (
        RowWriter(tmp_path / "x.npy", (2,), np.float32) as rows,
        ArrayWriter(tmp_path / "y.npy", (4, 2), np.float32) as array,
    ):
        for block in (np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float64)):
            with pytest.raises(ValueError, match="rows are float32"):
                rows.append(block)
            with pytest.raises(ValueError, match="rows are float32"):
                array.write(np.array([0]), block)
        with pytest.raises(ValueError, match="rows are float32"):  # one row for two
            array.write(np.array([0, 1]), np.zeros((1, 2), np.float32))


def test_a_collection_comes_back(tmp_path: Path) -> None:
    features = np.eye(3, dtype=np.float32)
    loaded = load_collection(write_features(tmp_path, features, ["a", "b", "ü/c"], ["x", "", "x"]))
    assert np.array_equal(loaded.features, features)
    assert loaded.paths.tolist() == ["a", "b", "ü/c"]
    assert loaded.labels.tolist() == ["x", "", "x"]


@pytest.mark.parametrize(
    ("features", "paths", "labels", "message"),
    [
        (
            np.eye(3, dtype=np.float32),
            ["a", "b"],
            ["x"] * 3,
            "3 features, 2 image_paths, 3 labels; .*dvc repro --force",
        ),
        (np.eye(2, dtype=np.float64), ["a", "b"], ["x"] * 2, r"float64 \(2, 2\), not float32"),
        (np.zeros(2, dtype=np.float32), ["a", "b"], ["x"] * 2, r"float32 \(2,\), not float32 \(N, D\)"),
        (np.eye(2, dtype=np.float32), ["b", "a"], ["x"] * 2, "not sorted"),
        (np.eye(2, dtype=np.float32), ["a", "a"], ["x"] * 2, "not sorted"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, features: np.ndarray, paths: list[str], labels: list[str], message: str
) -> None:
    with pytest.raises(LookalikeError, match=message):
        load_collection(write_features(tmp_path, features, paths, labels))


def test_missing_truncated_and_pickled_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(LookalikeError, match=r"features\.npy does not exist; make it: dvc repro extract"):
        load_collection(tmp_path)
    folder = write_features(tmp_path, np.eye(2, dtype=np.float32), ["a", "b"], ["x", "x"])
    content = (folder / "features.npy").read_bytes()
    for damaged in (content[:-1], content[:20], b""):
        (folder / "features.npy").write_bytes(damaged)
        with pytest.raises(LookalikeError, match=r"not a readable \.npy file"):
            load_collection(folder)
    (folder / "features.npy").write_bytes(content)
    np.save(folder / "labels.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(LookalikeError, match=r"not a readable \.npy file"):
        load_collection(folder)


def test_pixels_are_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 9, 3), np.uint8))
    for name in ("image_paths", "labels", "sha256"):
        save_strings(tmp_path / f"{name}.npy", ["a", "b"])
    with pytest.raises(LookalikeError, match=r"not uint8 \(N, S, S, 3\)"):
        load_images(tmp_path)


def test_features_of_other_images_are_refused() -> None:
    paths, none = np.array(["a", "b"]), np.zeros((2, 1), np.float32)
    images = Images(none, paths, paths, paths, "pad")
    check_same_images(images, Collection(none, paths, paths))
    with pytest.raises(LookalikeError, match="come from different runs"):
        check_same_images(images, Collection(none, paths[::-1], paths))


@pytest.mark.parametrize("content", [b"", b"pa", b"\xff\n"])
def test_a_fit_that_was_cut_off_is_refused(tmp_path: Path, content: bytes) -> None:
    np.save(tmp_path / "images.npy", np.zeros((1, 32, 32, 3), np.uint8))
    for name in ("image_paths", "labels", "sha256"):
        save_strings(tmp_path / f"{name}.npy", ["a"])
    (tmp_path / "fit.txt").write_bytes(b"pad\n")
    assert load_images(tmp_path).fit == "pad"
    (tmp_path / "fit.txt").write_bytes(content)
    with pytest.raises(LookalikeError, match=r"fit.txt says .*, not crop, pad, stretch; .*dvc repro --force"):
        load_images(tmp_path)
    (tmp_path / "fit.txt").unlink()
    with pytest.raises(LookalikeError, match=r"fit.txt does not exist; make it: dvc repro --force preprocess"):
        load_images(tmp_path)
