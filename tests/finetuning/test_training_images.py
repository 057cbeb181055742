"""Who is trained on, in which batches and views; never a query."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lookalike.base.errors import LookalikeError
from lookalike.evaluation import protocol
from lookalike.finetuning import training_images
from lookalike.finetuning.augmentation import view
from lookalike.finetuning.batches import Batches
from tests.helpers.finetuning_settings import PROTOCOL, SETTINGS, changed

pytestmark = pytest.mark.slow  # TensorFlow trains networks


# ---------------------------------------------------------------- batches and views


@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(3, 9), min_size=4, max_size=6))
def test_a_batch_is_p_classes_of_k_images(seed: int, sizes: list[int]) -> None:
    codes = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(len(codes)) * 10
    batches = Batches(rows, codes, 4, 3, 2, seed)
    first = list(batches.epoch(0))
    assert len(first) == len(batches)
    for own, labels, views in first:
        assert len(own) == len(set(own.tolist())) == 12  # no image twice
        assert np.array_equal(codes[own // 10], labels)
        assert np.unique(labels, return_counts=True)[1].tolist() == [3] * 4
        assert set(views.tolist()) <= {0, 1}
    again = list(Batches(rows, codes, 4, 3, 2, seed).epoch(0))
    assert all(
        np.array_equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(first, batches.epoch(1), strict=False))


def test_views_keep_what_they_must() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mirrored, plain = changed(flip=True), changed(flip=False, shift=0.0, zoom=0.0, rotate=0.0, light=0.0)
    assert np.array_equal(view(pixels, "0" * 64, 0, mirrored), pixels)
    assert np.array_equal(view(pixels, "0" * 64, 1, mirrored), pixels[:, ::-1])
    for number in range(1, 5):  # nothing is set to vary, so nothing does
        assert np.array_equal(view(pixels, "0" * 64, number, plain), pixels)
    moved = view(pixels, "0" * 64, 2, SETTINGS)
    assert moved.shape == pixels.shape and moved.dtype == np.uint8 and not np.array_equal(moved, pixels)
    assert np.array_equal(moved, view(pixels, "0" * 64, 2, SETTINGS))
    assert not np.array_equal(moved, view(pixels, "1" * 64, 2, SETTINGS))  # drawn by the image's bytes


# ---------------------------------------------------------------- who is trained on


def collection(sizes: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths, labels and byte hashes of a made-up collection."""
    labels = np.array([name for name, count in sizes.items() for _ in range(count)])
    paths = np.array([f"{label}/{number:04d}.png" for number, label in enumerate(labels.tolist())])
    rng = np.random.default_rng(0)
    hashes = np.array([rng.bytes(32).hex() for _ in labels.tolist()])
    return paths, labels, hashes


@given(
    seed=st.integers(0, 50), copies=st.integers(0, 12), relabelled=st.booleans(),
    held=st.sampled_from([0.0, 0.34]), validation=st.sampled_from([0.0, 0.2]),
)  # fmt: skip
def test_no_query_is_trained_on_nor_its_bytes(
    seed: int, copies: int, relabelled: bool, held: float, validation: float
) -> None:
    """Whatever is byte-identical to whatever else, with the same label or another."""
    paths, labels, hashes = collection({"a": 12, "b": 15, "c": 9, "": 5})
    rng = np.random.default_rng(seed)
    for one, other in rng.integers(0, len(labels), (copies, 2)).tolist():
        if relabelled or labels[one] == labels[other]:
            hashes[one] = hashes[other]
    asked = replace(PROTOCOL, seed=seed)
    split = protocol.split(paths, labels, hashes, asked)
    values = {"classes": 2, "images": 2, "held_out_classes": held, "validation": validation, "seed": seed}
    chosen = training_images.choose(paths, labels, hashes, asked, changed(**values))
    seen = np.concatenate([chosen.train, chosen.queries, chosen.gallery])
    assert len(chosen.train)
    assert not np.isin(seen, split.queries).any()
    assert not np.isin(hashes[seen], hashes[split.queries]).any()
    assert not np.isin(labels[seen], ["", *chosen.held_out]).any()
    assert len(chosen.held_out) == (1 if held else 0)
    assert bool(len(chosen.queries)) == bool(validation)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ({"": 9}, {}, r"finetune learns from classes, but .*; sort the images into subfolders"),
        ({"a": 9}, {}, r"there is only 1 to train on: 'a'; it needs two"),
        ({"a": 5, "b": 5, "c": 50}, {"classes": 3, "images": 8},
         r"batches of 3 classes with 8 images each, but only 1 of 3 classes .*finetune\.images to at most 4"),
        ({"a": 20, "b": 20}, {"classes": 8, "images": 2}, r"but only 2 of 2 .*; set finetune\.classes to at most 2$"),
        ({"a": 20, "b": 20}, {"held_out_classes": 0.1}, r"held_out_classes is 0\.1, less than one of 2 classes"),
        ({"a": 20, "b": 20}, {"held_out_classes": 0.5}, r"there is only 1 to train on"),
        ({"a": 2, "b": 2}, {"validation": 0.2}, r"finetune\.validation is 0\.2, but among the training images no class "
                                                r"has two different images; set it to 0$"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_said(sizes: dict[str, int], values: dict, message: str) -> None:
    settings = changed(**{"validation": 0.0, "classes": 2, "images": 2} | values)
    with pytest.raises(LookalikeError, match=message) as caught:
        training_images.choose(*collection(sizes), PROTOCOL, settings)
    assert "\n" not in str(caught.value)


def test_leave_one_out_leaves_nothing_to_train_on() -> None:
    settings = replace(PROTOCOL, kind="leave-one-out")
    with pytest.raises(LookalikeError, match="every image is a query, and none is left"):
        training_images.choose(*collection({"a": 9, "b": 9}), settings, SETTINGS)


def test_lists_are_obeyed(tmp_path: Path) -> None:
    paths, labels, hashes = collection({"a": 9, "b": 9})
    hashes[3] = hashes[0]
    (tmp_path / "q.txt").write_text("\n".join(paths[[0, 10]]))
    settings = replace(PROTOCOL, kind="lists", queries=str(tmp_path / "q.txt"))
    chosen = training_images.choose(paths, labels, hashes, settings, changed(classes=2, images=2, validation=0.2))
    seen = np.concatenate([chosen.train, chosen.queries])
    assert sorted(seen.tolist()) == [row for row in range(18) if row not in (0, 3, 10)]
