"""The small data set on which proof/effects/run.py tries every key of params.yaml, and what each is tried with.

A hundred real digits of scikit-learn's, as a user's folder would hold them: of several sizes, one large, one broken.
"""

import io
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lookalike.artifacts.arrays import save_strings
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base.files import file_digest
from lookalike.base.params import UNUSED

EACH = 10  # pictures a class
SIDE = 32  # preprocess.image_size
VECTORS = (9984, 16)  # the fewest that ivfpq learns its codes from; of so few dimensions
BACKBONE, LAYER, DEEPER = "MobileNet", "conv_pw_2_relu", "conv_pw_3_relu"


@dataclass(frozen=True)
class Key:
    """How a key of params.yaml is tried.

    other    what it is changed to; must make a difference on the small data set.
    base     settings that stand beside BASE before and after the change, without which the key is not read.
    along    settings that must change with it, because the stage refuses them otherwise.
    decides  "results": some artifact must change. "nothing": none may; of speed, or one that only stops a stage.
             "last bits": features alone may, by rounding, and what is made of them.
    given    outputs that are not made but lie in the small data set; then only the stages of `only` are run.
    """

    other: Any
    base: dict[str, Any] = field(default_factory=dict)
    along: dict[str, Any] = field(default_factory=dict)
    decides: Literal["results", "nothing", "last bits"] = "results"
    given: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()


BASE: dict[str, Any] = {
    "download.dataset": "folder", "download.folder": "small/pictures", "download.exclude": [],
    "download.limit_per_class": EACH - 1,
    "preprocess.image_size": SIDE, "preprocess.workers": 1,
    "model.backbone": BACKBONE, "model.layer": LAYER,
    "index.refine.pca": 16, "index.refine.augment": 4, "index.refine.expand": 3,
    "evaluate.k": [1, 5], "evaluate.resamples": 100, "evaluate.split_seeds": 2, "evaluate.examples": 2,
    "evaluate.worst": 2, "evaluate.map_images": 10,
    "benchmark.queries": 5, "benchmark.repeats": 1,
}  # fmt: skip
NO_FOLDER = {"download.folder": UNUSED}
RAW = {"index.refine.pca": 0, "index.refine.whiten": 0, "index.refine.augment": 0}
HNSW = {"index.kind": "hnsw"}
LISTED = {"protocol.kind": "lists", "protocol.queries": "small/queries.txt"}
TUNED = {
    "finetune.networks": ["finetuned"], "extract.model": "data/finetuned", "finetune.classes": 8, "finetune.images": 4,
    "finetune.views": 3, "finetune.epochs": 3, "finetune.learning_rate": 0.001,
}  # fmt: skip
DEEP = TUNED | {"finetune.layer": "conv_pw_1_relu"}  # behind which layers of the backbone are trained
KERAS = {"extract.runtime": "tensorflow"}  # which has bfloat16 on every processor
INT8 = {"extract.runtime": "openvino", "extract.precision": "int8", "extract.calibration": "small/calibration.npy"}


def keys(folder: Path) -> dict[str, Key]:
    """What each key of params.yaml is tried with; `folder` is where `make` wrote."""
    archive, mirror = folder / "archive.zip", folder / "mirror.zip"
    fetched = {"download.dataset": "caltech101", "download.url": archive.as_uri()} | NO_FOLDER
    sha256 = f"sha256:{file_digest(archive)}"
    return {
        "download.dataset": Key("digits", along=NO_FOLDER),
        "download.folder": Key("small/others"),
        "download.labels": Key("labels.csv"),
        "download.url": Key(mirror.as_uri(), fetched | {"download.checksum": sha256}),
        "download.checksum": Key(f"md5:{file_digest(archive, 'md5')}", fetched | {"download.checksum": sha256}),
        "download.exclude": Key(["3"], {"download.dataset": "digits"} | NO_FOLDER),
        "download.limit_per_class": Key(EACH - 2),
        "preprocess.image_size": Key(40),
        "preprocess.fit": Key("crop"),
        "preprocess.max_pixels": Key(10_000),
        "preprocess.max_rejected": Key(0.5, decides="nothing"),
        "preprocess.workers": Key(2, decides="nothing"),
        "model.backbone": Key("MobileNetV2", {"model.layer": ""}),
        "model.weights": Key("file", {"model.file": "small/0.weights.h5"}),
        "model.file": Key("small/1.weights.h5", {"model.weights": "file", "model.file": "small/0.weights.h5"}),
        "model.layer": Key(DEEPER),
        "model.pooling": Key("max"),
        "model.mirror": Key(True),
        "model.seed": Key(1),
        "extract.model": Key("data/finetuned", TUNED | {"extract.model": "data/model"}),
        "extract.runtime": Key("tensorflow"),
        "extract.precision": Key("bfloat16", KERAS),
        "extract.batch_size": Key(16, decides="last bits"),
        "extract.calibration": Key("small/calibration2.npy", INT8),
        "extract.min_cosine": Key(0.5, KERAS | {"extract.precision": "bfloat16"}, decides="nothing"),
        "index.kind": Key("hnsw"),
        "index.storage": Key("float16"),
        "index.target_recall": Key(0.5, HNSW | {"index.hnsw.neighbors": 3, "index.hnsw.ef_construction": 3}),
        "index.memory": Key(1),
        "index.threads": Key(2),
        "index.seed": Key(1),
        "index.hnsw.neighbors": Key(8, HNSW),
        "index.hnsw.ef_construction": Key(8, HNSW),
        "index.ivf.lists": Key(1, {"index.kind": "ivf"}),
        "index.ivf.code_bytes": Key(
            4, {"index.kind": "ivfpq", "index.ivf.code_bytes": 8, "index.target_recall": 0.1} | RAW,
            given={"data/features": "vectors"}, only=("index",),
        ),
        "index.tags.file": Key("small/tags.csv"),
        "index.tags.weight": Key(0.6, {"index.tags.file": "small/tags.csv"}),
        "index.refine.power": Key(1),
        "index.refine.pca": Key(8),
        "index.refine.whiten": Key(0),
        "index.refine.augment": Key(0),
        "index.refine.expand": Key(0),
        "index.refine.alpha": Key(3),
        "index.refine.rerank": Key(30),
        "finetune.networks": Key(
            ["finetuned"], TUNED | {"finetune.networks": [], "extract.model": "data/model"},
            along={"extract.model": "data/finetuned"},
        ),
        "finetune.layer": Key("conv_pw_1_relu", TUNED),
        "finetune.head": Key(False, DEEP),
        "finetune.loss": Key("triplet-hard", TUNED),
        "finetune.temperature": Key(0.5, TUNED),
        "finetune.margin": Key(1.0, TUNED | {"finetune.loss": "triplet-hard"}),
        "finetune.classes": Key(4, TUNED),
        "finetune.images": Key(2, TUNED),
        "finetune.epochs": Key(5, TUNED),
        "finetune.learning_rate": Key(0.01, TUNED),
        "finetune.weight_decay": Key(0.5, TUNED),
        "finetune.views": Key(2, TUNED),
        "finetune.flip": Key(True, TUNED),
        "finetune.shift": Key(0.3, TUNED),
        "finetune.zoom": Key(0.4, TUNED),
        "finetune.rotate": Key(40, TUNED),
        "finetune.light": Key(0.4, TUNED),
        "finetune.validation": Key(0.0, TUNED),
        "finetune.patience": Key(1, TUNED | {"finetune.epochs": 12, "finetune.learning_rate": 0.3}),
        "finetune.held_out_classes": Key(0.2, TUNED),
        "finetune.precision": Key("bfloat16", DEEP),
        "finetune.seed": Key(1, TUNED),
        "protocol.kind": Key("leave-one-out", RAW),
        "protocol.fraction": Key(0.4),
        "protocol.seed": Key(1),
        "protocol.queries": Key("small/queries2.txt", LISTED),
        "protocol.gallery": Key("small/gallery.txt", LISTED),
        "evaluate.k": Key([1, 3]),
        "evaluate.resamples": Key(200),
        "evaluate.split_seeds": Key(3),
        "evaluate.seed": Key(1),
        "evaluate.memory": Key(16, decides="nothing"),
        "evaluate.examples": Key(3),
        "evaluate.worst": Key(3),
        "evaluate.map_images": Key(12),
        "benchmark.queries": Key(3),
        "benchmark.repeats": Key(2, decides="nothing"),
        "benchmark.threads": Key(2),
    }  # fmt: skip


def make(folder: Path) -> None:
    """Write the small data set into a new folder: all that BASE and `keys` name but the weights."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    shades = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    for name, turned in (("pictures", 0), ("others", 90)):
        for label in range(10):
            for number, row in enumerate(np.flatnonzero(digits.target == label)[:EACH]):
                picture = Image.fromarray(shades[row]).resize((40 + 2 * number, 30)).rotate(turned)
                path = folder / name / str(label) / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.resize((300, 200) if (label, number) == (3, 0) else picture.size).save(path)
    (folder / "pictures/7/00.png").write_bytes(b"no picture")
    paths = [f"{label}/{number:02}.png" for label in range(10) for number in range(EACH - 1) if label != 7]
    (folder / "pictures/labels.csv").write_text("path,label\n" + "".join(f"{path},{path[0]}\n" for path in paths[::2]))
    named = "".join(f"{path},digit {label} of writer {label * 3 % 4}\n" for path in paths for label in [int(path[0])])
    (folder / "tags.csv").write_text(f"path,text\n{named}")
    (folder / "queries.txt").write_text("\n".join(paths[::4]))
    (folder / "queries2.txt").write_text("\n".join(paths[1::4]))
    (folder / "gallery.txt").write_text("\n".join([*paths[2::4], *paths[3::4]]))
    _archive(folder)
    for name, rows in (("calibration", slice(0, 8)), ("calibration2", slice(8, 16))):
        wide = [np.asarray(Image.fromarray(shade).resize((SIDE, SIDE)).convert("RGB")) for shade in shades[rows]]
        np.save(folder / f"{name}.npy", np.stack(wide))  # uint8, (8, S, S, 3)
    _vectors(folder / "vectors")


def make_weights(folder: Path) -> None:
    """Write two sets of weights of the backbone; imports TensorFlow."""
    from lookalike.networks.keras_setup import keras

    for seed in (0, 1):
        keras.utils.set_random_seed(100 + seed)
        network = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(None, None, 3))
        network.save_weights(folder / f"{seed}.weights.h5")


def _archive(folder: Path) -> None:
    """An archive as Caltech-101's is: a zip with a tar.gz with photographs; and a copy of it."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for path in sorted((folder / "pictures").glob("*/*.png")):
            if path.parent.name == "7":
                continue
            photograph = io.BytesIO()
            Image.open(path).save(photograph, "JPEG")
            entry = tarfile.TarInfo(f"101_ObjectCategories/{path.parent.name}/{path.stem}.jpg")
            entry.size = photograph.tell()
            photograph.seek(0)
            tar.addfile(entry, photograph)
    with zipfile.ZipFile(folder / "archive.zip", "w") as zipped:
        zipped.writestr("caltech-101/101_ObjectCategories.tar.gz", inner.getvalue())
    (folder / "mirror.zip").write_bytes((folder / "archive.zip").read_bytes())


def _vectors(folder: Path) -> None:
    """Features as extract writes them, of so many images as there are not: drawn, around ten centres."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, VECTORS[0])
    rows = draw.standard_normal((10, VECTORS[1]))[labels] + draw.standard_normal(VECTORS) / 2
    np.save(folder / "features.npy", rows.astype(np.float32))
    save_strings(folder / "image_paths.npy", [f"{row:05}.png" for row in range(VECTORS[0])])
    save_strings(folder / "labels.npy", [str(label) for label in labels.tolist()])
    Embedding(Network(BACKBONE, "random", LAYER, "avg", VECTORS[1], 1, "0" * 64), SIDE, "pad").save(folder)
