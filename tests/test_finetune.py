"""Fine-tuning: losses, batches, who is trained on, resuming, and its place in the graph."""

import dataclasses
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Project, copy_project
from hypothesis import given, settings
from hypothesis import strategies as st
from import_graph import explained_only, project_files, sections_read
from msgspec import convert, to_builtins
from msgspec.structs import replace

from lookalike.artifacts.arrays import Images, load_images
from lookalike.artifacts.descriptions import Embedding, Network, beside, describe
from lookalike.base import params
from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json
from lookalike.base.params import UNUSED
from lookalike.base.vectors import unit_length
from lookalike.evaluation import protocol
from lookalike.finetuning import checkpoint, finetune, losses, training_images
from lookalike.finetuning.augmentation import view
from lookalike.finetuning.batches import Batches
from lookalike.finetuning.settings import Settings
from lookalike.networks.keras_setup import usable
from lookalike.runtimes import registry
from proof.effects.graph import stages

pytestmark = pytest.mark.slow  # TensorFlow trains networks

SETTINGS = params.load(ROOT / "params.yaml", "finetune", Settings)
PROTOCOL = params.load(ROOT / "params.yaml", "protocol", protocol.Settings)
COMMAND = ("python", "stages/finetune/finetune.py", "data/processed", "data/model", "data/finetuned")
LAST = "block_6_expand_relu"  # of MobileNetV2; what lies behind it is not needed here
SMALL = {
    "download__limit_per_class": 12, "preprocess__image_size": 32, "model__backbone": "MobileNetV2",
    "model__layer": LAST, "finetune__flip": False, "finetune__classes": 8, "finetune__images": 4, "finetune__views": 2,
    "index__refine__pca": 16, "index__refine__augment": 3, "index__refine__expand": 3, "evaluate__split_seeds": 1,
    "evaluate__resamples": 100, "evaluate__map_images": 50, "benchmark__queries": 5, "benchmark__repeats": 1,
}  # fmt: skip
ANGLES = np.deg2rad([0, 30, 60, 180])
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)  # (4, 2)


def changed(base: Settings = SETTINGS, **values) -> Settings:
    return convert(to_builtins(base) | values, Settings)


# ---------------------------------------------------------------- losses


def test_supcon_by_hand() -> None:
    """Classes a, a, b: cosines 0.5 within a; b's image has no partner and is no anchor."""
    vectors = np.array([[1, 0], [0.5, 3**0.5 / 2], [0, 1]], np.float32)
    to_b = np.exp([0.0, 3**0.5 / 2])  # of the two images of a
    expected = np.mean([-np.log(np.exp(0.5) / (np.exp(0.5) + other)) for other in to_b])
    assert float(losses.supervised_contrastive(vectors, np.array([0, 0, 1]), 1.0)) == pytest.approx(expected, rel=1e-5)


def test_batch_hard_by_hand() -> None:
    """On a circle at 0, 30 (a), 60, 180 degrees (b): chords are 2 sin(angle / 2)."""
    chord = lambda degrees: 2 * np.sin(np.deg2rad(degrees / 2))  # noqa: E731
    anchors = [
        0.2 + chord(30) - chord(60),  # below zero: counts as zero
        0.2 + chord(30) - chord(30),
        0.2 + chord(120) - chord(30),
        0.2 + chord(120) - chord(150),
    ]
    expected = np.mean(np.maximum(anchors, 0))
    assert float(losses.triplet_hard(CIRCLE, np.array([0, 0, 1, 1]), 0.2)) == pytest.approx(expected, rel=1e-5)


def test_semi_hard_by_hand() -> None:
    """The same four. Where no negative is further than the pair, the furthest is taken."""
    square = lambda degrees: 4 * np.sin(np.deg2rad(degrees / 2)) ** 2  # noqa: E731
    pairs = [
        0.5 + square(30) - square(60),  # 0 with 30: negatives at 60, 180; the nearest beyond 30
        0.5 + square(30) - square(150),  # 30 with 0: negatives 30 away, which is not beyond, and 150
        0.5 + square(120) - square(60),  # 60 with 180: negatives 60 and 30 away, none beyond: the furthest
        0.5 + square(120) - square(150),  # 180 with 60: negatives 180 and 150 away: the nearer
    ]
    found = float(losses.triplet_semihard(CIRCLE, np.array([0, 0, 1, 1]), 0.5))
    assert found == pytest.approx(np.mean(np.maximum(pairs, 0)), abs=1e-5)


def naive(name: str, z: np.ndarray, y: np.ndarray, value: float) -> float:
    """The formulas of the docstrings, a loop a sum, float64."""
    z = z.astype(np.float64)
    n, terms = len(z), []
    distance = lambda i, j: np.sqrt(max(2 - 2 * z[i] @ z[j], 1e-12))  # noqa: E731
    for i in range(n):
        positives = [j for j in range(n) if j != i and y[j] == y[i]]
        negatives = [j for j in range(n) if y[j] != y[i]]
        if name == "supcon" and positives:
            total = sum(np.exp(z[i] @ z[a] / value) for a in range(n) if a != i)
            terms.append(-np.mean([np.log(np.exp(z[i] @ z[p] / value) / total) for p in positives]))
        elif name == "hard" and positives and negatives:
            worst = max(distance(i, p) for p in positives) - min(distance(i, k) for k in negatives)
            terms.append(max(0.0, value + worst))
        elif name == "semihard" and negatives:
            for p in positives:
                beyond = [distance(i, k) for k in negatives if distance(i, k) > distance(i, p)]
                chosen = min(beyond) if beyond else max(distance(i, k) for k in negatives)
                terms.append(max(0.0, value + distance(i, p) ** 2 - chosen**2))
    return float(np.mean(terms)) if terms else 0.0


LOSSES = {
    "supcon": losses.supervised_contrastive, "hard": losses.triplet_hard, "semihard": losses.triplet_semihard
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 4))
def test_losses_agree_with_a_loop_and_with_a_rotated_copy(name: str, seed: int, classes: int) -> None:
    """The reference, and the law: neither turning all vectors nor reordering the batch changes a loss."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(9, 5))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    y = rng.integers(0, classes, 9)
    found = float(LOSSES[name](z, y, 0.3))
    assert found == pytest.approx(naive(name, z, y, 0.3), rel=1e-4, abs=1e-5)
    turn, order = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32), rng.permutation(9)
    assert float(LOSSES[name]((z @ turn)[order], y[order], 0.3)) == pytest.approx(found, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "reference", "value"),
    [
        ("supcon", "supcon", "temperature"),
        ("triplet-hard", "hard", "margin"),
        ("triplet-semihard", "semihard", "margin"),
    ],
)
def test_the_loss_is_the_one_that_is_set(name: str, reference: str, value: str) -> None:
    from lookalike.finetuning.trainer import loss_of

    codes = np.array([0, 0, 1, 1])
    found = float(loss_of(CIRCLE, codes, changed(**{"loss": name, value: 0.4})))
    assert found == pytest.approx(naive(reference, CIRCLE, codes, 0.4), rel=1e-4)


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


def test_a_finished_training_is_another_when_code_changes_that_picks_its_best_epoch() -> None:
    """All that the validation mAP comes from, but what reads, writes, refuses, or makes other figures."""
    idle = {"artifacts/arrays.py", "base/errors.py", "base/machine.py", "base/params.py"}
    others = {"evaluation/protocol.py", "evaluation/bootstrap.py"}  # rows are in the digest themselves; no intervals
    files = [file for file in project_files(ROOT / "lookalike/evaluation/measure.py") if not explained_only(file)]
    used = {file.removeprefix("lookalike/") for file in files}
    assert used - idle - others == set(finetune.DECIDES) - {"networks/backbones.py", "networks/keras_setup.py"}
    assert all((ROOT / "lookalike" / name).is_file() for name in finetune.DECIDES)


def test_a_damaged_checkpoint_is_none(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, checkpoint.Progress(epoch=3), {"model": [np.arange(3.0)]})
    progress, arrays = checkpoint.load(tmp_path)
    assert progress.epoch == 3 and arrays["model"][0].tolist() == [0, 1, 2]
    file = tmp_path / checkpoint.STATE_FILE
    file.write_bytes(file.read_bytes()[:-40])
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.load(tmp_path / "none") is None


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Steps as plain Python: nothing to compile for a network of six weights."""
    from lookalike.networks.keras_setup import tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("eagerly")
def test_a_training_that_ends_within_an_epoch_goes_on_behind_its_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted in the second of two epochs; no batch is done twice, and the weights are the undisturbed ones'."""
    from lookalike.finetuning import trainer as training
    from lookalike.networks.keras_setup import keras

    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)  # after each batch
    labels, none = np.repeat(["a", "b"], 8), np.zeros(0, np.int64)
    frozen = np.random.default_rng(0).normal(size=(1, 16, 3)).astype(np.float32)
    chosen = training_images.Material(np.arange(16), none, none, (), ())
    settings = changed(classes=2, images=2, views=1, epochs=2, patience=9, learning_rate=0.1)

    def train(folder: Path, most: int) -> tuple[int, bytes]:
        """Train for at most so many batches; how many were done, and the weights."""
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
        trainer, done = training.Trainer(model, frozen, labels, chosen, settings, folder), []
        step = trainer._step

        def limited(*batch: Any) -> Any:
            if len(done) == most:
                raise KeyboardInterrupt
            done.append(batch)
            return step(*batch)

        trainer._step = limited
        with suppress(KeyboardInterrupt):
            trainer.run(lambda row: None)
        return len(done), model.get_weights()[0].tobytes()

    count, undisturbed = train(tmp_path / "undisturbed", 99)
    assert count == 8
    assert train(tmp_path / "killed", 6)[1] != undisturbed
    assert "resumed" not in capsys.readouterr().err
    assert train(tmp_path / "killed", 99) == (2, undisturbed)
    assert "finetune: resumed in epoch 2 of 2\n" in capsys.readouterr().err


def test_a_head_behind_a_pooling_that_has_none_is_refused(tmp_path: Path) -> None:
    from lookalike.finetuning import cut
    from lookalike.networks.keras_setup import keras

    pixels = keras.Input((None, None, 3))
    model = keras.Model(pixels, keras.layers.Conv2D(4, 1, name="only")(pixels))
    (tmp_path / "architecture.json").write_text(model.to_json())
    model.save_weights(tmp_path / "model.weights.h5")
    write_json(tmp_path / "model.json", to_builtins(Network("VGG16", "random", "only", "gem", 4, 16, "f")))
    message = r"finetune\.head is true, but a head needs model\.pooling avg or max, not gem; set it to false"
    with pytest.raises(LookalikeError, match=message):
        cut.cut(tmp_path, "", True, 32)


# ---------------------------------------------------------------- a training


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """120 digits, a small network, and its features, with fine-tuning off."""
    project = copy_project(tmp_path_factory.mktemp("finetune") / "project")
    project.set(**SMALL)
    assert project.repro("extract") == ["download", "preprocess", "model", "extract"]
    project.commit("off")
    return project


@pytest.fixture
def here(home: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same, and a cache of this test's own."""
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return home


def tune(project: Project, images: Images | None = None, model: Path | None = None, **values):
    from lookalike.finetuning import finetune

    images = images or load_images(project.folder / "data/processed")
    settings = params.load(project.folder / "params.yaml", "finetune", Settings)
    settings = changed(settings, **{"epochs": 2, "patience": 9} | values)
    chosen = training_images.choose(images.paths, images.labels, images.sha256, PROTOCOL, settings)
    rows: list[dict[str, float]] = []
    return finetune.tune(images, model or project.folder / "data/model", chosen, settings, rows.append), rows


def test_no_pixel_of_a_query_reaches_a_weight(here: Project) -> None:
    """Other pictures in the queries' places: the same weights, bit for bit. In a training image's place: others."""
    images = load_images(here.folder / "data/processed")
    split = protocol.split(images.paths, images.labels, images.sha256, PROTOCOL)

    def weights(rows: np.ndarray) -> bytes:
        pixels = np.array(images.pixels)
        pixels[rows] = np.random.default_rng(0).integers(0, 256, pixels[rows].shape, dtype=np.uint8)
        tuned, _ = tune(here, dataclasses.replace(images, pixels=pixels))
        return b"".join(value.tobytes() for value in tuned.model.get_weights())

    untouched = weights(split.queries[:0])
    assert len(split.queries) > 10
    assert weights(split.queries) == untouched
    assert weights(split.gallery) != untouched


@pytest.mark.parametrize(
    "values",
    [
        {"layer": "", "head": True, "precision": "float16"},  # with loss scaling; behind a layer random weights vanish
        {"layer": "block_4_add", "head": True, "loss": "triplet-semihard", "learning_rate": 1e-3},
        {
            "layer": "block_5_add",
            "head": False,
            "loss": "triplet-hard",
            "precision": "bfloat16",
            "validation": 0.0,
        },
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_the_saved_network_embeds_as_the_trained_one(here: Project, tmp_path: Path, values: dict) -> None:
    """From pixels; and it learnt something."""
    images = load_images(here.folder / "data/processed")
    if not usable(values.get("precision", "float32")):
        values |= {"precision": "float32"}
    tuned, rows = tune(here, **values)
    assert len(rows) == 2 and all(np.isfinite(list(row.values())).all() for row in rows)
    assert all(("validation_mAP" in row) == (values.get("validation", 1) > 0) for row in rows)
    (tmp_path / "model").mkdir()
    network = tuned.save(tmp_path / "model")
    every = np.arange(len(images.pixels))
    expected = unit_length(tuned.trainer.embed(every))
    assert network.weights == "finetuned" and network.dim == expected.shape[1] == 192
    least = 0.99 if values.get("precision") == "bfloat16" else 0.9999
    for runtime in ("openvino",) if values["layer"] else ("openvino", "tensorflow"):
        embed = registry.runtime(runtime).load(tmp_path / "model", 32, len(every), "float32")
        assert (unit_length(embed(np.array(images.pixels))) * expected).sum(axis=1).min() > least, runtime
    start = np.load(here.folder / "data/features/features.npy")
    assert np.abs(unit_length(start) - expected).max() > 1e-4


@pytest.mark.parametrize("layer", ["", "block_5_add"])
def test_a_network_that_looks_at_mirror_images_too_is_trained_and_saved_so(
    here: Project, tmp_path: Path, layer: str
) -> None:
    from lookalike.finetuning import finetune
    from lookalike.networks import backbones

    start, saved = tmp_path / "start", tmp_path / "saved"
    for folder in (start, saved):
        folder.mkdir()
    plain = backbones.create("MobileNetV2", "random", Path(UNUSED), LAST, 0)
    backbones.save(plain, "MobileNetV2", "random", "avg", start, mirror=True)
    with pytest.raises(LookalikeError, match=r"model\.mirror is true.*set finetune\.flip to true and .*views to 2"):
        tune(here, model=start, layer=layer)
    tuned, _ = tune(here, model=start, layer=layer, flip=True, epochs=1)
    assert tuned.save(saved).mirror
    images = load_images(here.folder / "data/processed")
    every, settings = np.arange(len(images.pixels)), changed(flip=True, views=2, layer=layer)
    expected = {start: finetune.untrained(images, start, settings), saved: tuned.trainer.embed(every)}
    for folder, rows in expected.items():
        found = registry.openvino.load(folder, 32, len(every), "float32")(np.array(images.pixels))
        assert (unit_length(np.array(found)) * unit_length(rows)).sum(axis=1).min() > 0.9999


def test_a_training_lowers_its_loss(here: Project) -> None:
    _, rows = tune(here, epochs=12, learning_rate=3e-3)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer": "block_5_ad"}, r"finetune\.layer is 'block_5_ad', but .*data/model \(MobileNetV2\) has no such "
                                   r"layer; did you mean block_5_add\?"),
        ({"layer": "block_5_expand"}, r"finetune\.layer is 'block_5_expand', but some paths .* bypass it; "
                                       r"choose one that all paths pass: .*block_3_project_BN"),
        ({"head": False}, r"finetune\.layer is 'block_6_expand_relu', the last, and "
                          r"finetune\.head is false: nothing is left to"),
    ],
)  # fmt: skip
def test_a_layer_that_cannot_be_cut_behind_is_named(here: Project, values: dict, message: str) -> None:
    with pytest.raises(LookalikeError, match=message) as caught:
        tune(here, **values)
    assert "\n" not in str(caught.value)


def test_a_transformer_is_refused(tmp_path: Path) -> None:
    from lookalike.finetuning import cut

    write_json(tmp_path / "model.json", to_builtins(Network("dinov2_small", "preset", "x", "cls", 384, 9, "f")))
    with pytest.raises(
        LookalikeError, match="dinov2_small, a vision transformer; finetune trains convolutional networks"
    ):
        cut.cut(tmp_path, "", True, 224)


def test_weights_of_another_backbone_are_refused(here: Project, tmp_path: Path) -> None:
    """One line, and what was there stays."""
    for name in ("processed", "model"):
        shutil.copytree(here.folder / "data" / name, tmp_path / name)
    from lookalike.networks import backbones

    backbones.create("MobileNet", "random", Path(), "conv_pw_2_relu", 0).save_weights(
        tmp_path / "model/model.weights.h5"
    )
    command = [*COMMAND[:2], *(str(tmp_path / name) for name in ("processed", "model", "finetuned"))]
    done = here.run(*command, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert re.match(r"finetune: error: .*model\.weights\.h5 does not fit MobileNetV2", line)
    assert not (tmp_path / "finetuned").exists()


def test_dvclive_missing_is_said(here: Project, tmp_path: Path) -> None:
    (tmp_path / "dvclive.py").write_text("raise ImportError")
    environment = {**here.environment, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *COMMAND[1:]], cwd=here.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        "dvclive, which records the training's curves, is not installed: pip install -r requirements/finetune"
        in done.stderr
    )


def test_a_killed_training_ends_in_the_same_bytes(home: Project, tmp_path: Path) -> None:
    """SIGKILL at random moments: while the frozen layers are run, in and after epochs. Then the undisturbed run."""
    values = home.folder / "params.yaml"
    text = values.read_text().replace("layer: ''\n  head", "layer: block_5_add\n  head")
    assert text != values.read_text()
    (tmp_path / "params.yaml").write_text(text.replace("learning_rate: 5.0e-05", "learning_rate: 1.0e-03"))
    draw = random.Random(4)

    def start(name: str) -> subprocess.Popen:
        environment = {**home.environment, "LOOKALIKE_CACHE": str(tmp_path / f"{name}_cache")}
        command = [sys.executable, *COMMAND[1:-1], str(tmp_path / name), "--params", str(tmp_path / "params.yaml")]
        return subprocess.Popen(command, cwd=home.folder, env=environment, stderr=subprocess.PIPE, text=True)

    def state(pattern: str) -> int:
        return max((file.stat().st_mtime_ns for file in (tmp_path / "killed_cache").glob(pattern)), default=0)

    def run(name: str) -> str:
        """As nobody disturbs it; returns what it says."""
        calm = Project(home.folder)
        calm.environment["LOOKALIKE_CACHE"] = str(tmp_path / f"{name}_cache")
        return calm.run(*COMMAND[:-1], str(tmp_path / name), "--params", str(tmp_path / "params.yaml")).stderr

    run("undisturbed")
    kills, resumed = 0, False
    for pattern in ("frozen/*/done.json", "trainings/*/state.npz", "trainings/*/state.npz"):
        process, before = start("killed"), state(pattern)
        while process.poll() is None and state(pattern) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        if process.poll() is None:
            process.kill()
            kills += 1
        resumed |= "resumed in epoch" in process.communicate()[1]
    resumed |= "resumed in epoch" in run("killed")
    assert kills >= 2 and resumed
    names = ("model.weights.h5", "architecture.json", "model.json", "network.bin")
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    curves = [(tmp_path / f"{name}_curves/plots/metrics/loss.tsv").read_text() for name in ("killed", "undisturbed")]
    assert curves[0] == curves[1] and len(curves[0].splitlines()) > 3


def test_on_and_off_re_run_what_they_must(home: Project) -> None:
    """Off: nothing of DVC's or Git's knows of it. On: finetune and extract. Off again: nothing, the bytes as before."""
    features = home.folder / "data/features/features.npy"
    before = features.read_bytes()
    assert not home.run("git", "status", "--porcelain").stdout
    assert "evaluate" in (status := home.run("dvc", "status").stdout) and "finetune" not in status  # not run here
    assert "finetune" not in home.run("dvc", "stage", "list", "--all").stdout
    home.set(finetune__networks=["finetuned"], extract__model="data/finetuned")
    assert home.repro("extract") == ["stages/finetune/dvc.yaml:finetune@finetuned", "extract"]
    assert features.read_bytes() != before
    assert describe(home.folder / "data/finetuned").weights == "finetuned"
    assert home.repro("extract") == []
    unknown = home.run("git", "status", "--porcelain").stdout.splitlines()
    assert {line.split()[-1] for line in unknown} == {
        "data/finetuned.json", "data/finetuned_curves/", "dvc.lock", "stages/finetune/dvc.lock", "params.yaml"
    }  # fmt: skip
    home.set(finetune__networks=[], extract__model="data/model")
    assert home.repro("extract") == []  # it ran with these before
    assert features.read_bytes() == before


def test_the_stage_declares_what_it_runs_and_reads(tmp_path: Path) -> None:
    """As tests/test_graph.py asks of the stages that are in the graph by default."""
    project = copy_project(tmp_path / "project")
    project.set(finetune__networks=["finetuned"], extract__model="data/finetuned")
    graph = stages(project.folder)
    stage = graph["finetune@finetuned"]
    script = ROOT / stage.script
    assert stage.command == " ".join(COMMAND) and stage.command in script.read_text() and stage.description
    assert stage.sections == sections_read({stage.script})
    code = {dep for dep in stage.deps if dep.startswith(("lookalike", "stages/"))}
    files = {
        path.relative_to(ROOT).as_posix()
        for dep in code
        for path in ([ROOT / dep] if dep.endswith(".py") else (ROOT / dep).rglob("*.py"))
    }
    ran = {file for file in project_files(script) if not explained_only(file)}
    assert ran <= files
    for dep in code:
        assert dep in ran or any(file.startswith(f"{dep}/") for file in ran), f"{dep} is listed and never imported"
    assert {
        "data/processed",
        "data/model",
        "data/none",
        "requirements.txt",
        "requirements/finetune.txt",
    } == stage.deps - code
    assert stage.outs == {"data/finetuned", "data/finetuned.json", "data/finetuned_curves/plots/metrics"}
    assert "data/finetuned" in graph["extract"].deps and "data/model" not in graph["extract"].deps


def test_a_search_finds_the_network_of_its_index(tmp_path: Path) -> None:
    """Beside the index: data/model by default, or the fine-tuned one if that made it."""
    networks = {
        name: Network("VGG16", "random", "x", "avg", 8, 9, name * 8) for name in ("model", "finetuned", "other")
    }
    for name, network in networks.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "model.json", to_builtins(network))
    index = tmp_path / "index"
    index.mkdir()
    assert beside(index) == tmp_path / "model"  # nothing there yet: who opens the index says so
    for name in ("model", "finetuned"):
        Embedding(networks[name], 32, "pad").save(index)
        assert beside(index) == tmp_path / name
