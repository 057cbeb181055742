"""A small collection, as the stages write one, in a second and without TensorFlow: pictures in three colours.

Its network averages 4 x 4 squares of a picture, so that pictures of one colour are alike.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from msgspec import convert, to_builtins
from PIL import Image

from lookalike.artifacts import descriptions
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base.files import digests, new_folder, write_json
from lookalike.cli import app
from lookalike.images import decode
from lookalike.index import build as build_
from lookalike.index import build as indexes
from lookalike.index import files as index_files
from lookalike.index.tags import Tags
from tests.helpers.pictures import picture

NO_TAGS = {"file": "data/none", "weight": 0.3}  # section index.tags

SIZE = 32
CLASSES = {"blue": (30, 60, 220), "green": (30, 190, 60), "red": (220, 40, 30)}
EACH = 8
REFINE = {"power": 1, "pca": 0, "whiten": 0, "augment": 0, "expand": 0, "alpha": 1, "rerank": 0}
NETWORK = Network("Squares", "random", "", "avg", 48, 1, sha256(b"squares").hexdigest())


@dataclass(frozen=True)
class Built:
    """A collection on disk: raw, index, model, and where changes would go."""

    folder: Path

    @property
    def options(self) -> list[str]:
        """What tells the command where it is."""
        return ["--index", str(self.folder / "index"), "--model", str(self.folder / "model")]

    def picture(self, path: str) -> Path:
        return self.folder / "raw" / path


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, list(arguments), prog_name="lookalike")


def coloured(label: str, seed: int, width: int = 60, height: int = 44) -> Image.Image:
    """A picture of a class: its colour, and a pattern of its own."""
    flat = Image.new("RGB", (width, height), CLASSES[label])
    return Image.blend(flat, picture(seed, width, height), 0.25)


def build(folder: Path, each: int = EACH, texts: dict[str, str] | None = None, weight: float = 0.3) -> Built:
    """Write raw pictures, model and index. Again, with another number of pictures, it is rebuilt.

    texts  tags, by path; `weight` is theirs.
    """
    found = {}
    for label in CLASSES:
        (folder / "raw" / label).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            path = f"{label}/{number:02}.jpg"
            coloured(label, 100 * list(CLASSES).index(label) + number).save(folder / "raw" / path, quality=95)
            pixels = decode.fit(decode.decode((folder / "raw" / path).read_bytes(), 10**7), SIZE, "pad")
            found[path] = pixels.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).ravel().astype(np.float32)
    if not (folder / "model").is_dir():
        _write_model(folder / "model")
    write_index(folder / "index", found, Embedding(NETWORK, SIZE, "pad"), texts=texts, weight=weight)
    return Built(folder)


def write_index(
    folder: Path, features: dict[str, np.ndarray], embedding: Embedding, refined: dict[str, Any] = REFINE,
    texts: dict[str, str] | None = None, weight: float = 0.3, **settings: Any,
) -> None:  # fmt: skip
    """Write an index and its trace, as the stage does.

    features  float32, (D,), by path; the folder of a path is its class.
    refined   section index.refine; `settings` are other keys of section index.
    """
    chosen = convert({
        "kind": "flat", "storage": "auto", "target_recall": 0.99, "memory": 0, "threads": 1, "seed": 0,
        "hnsw": {"neighbors": 16, "ef_construction": 100}, "ivf": {"lists": 0, "code_bytes": 6},
        "tags": NO_TAGS, "refine": refined, **settings,
    }, indexes.Settings)  # fmt: skip
    paths = sorted(features)
    labels = np.array([path.rpartition("/")[0] for path in paths])
    refinement, tuned, why = build_.fit(np.stack([features[path] for path in paths]), chosen)
    with new_folder(folder) as partial:
        index_files.save(tuned, why, refinement, chosen, np.array(paths), labels, partial)
        embedding.save(partial)
        if texts:
            rows = {paths.index(path): text for path, text in sorted(texts.items())}
            Tags.fit(rows, weight).save(partial, texts)
        files = digests(partial)
    write_json(folder.with_suffix(".json"), {"files": [files]})


def _write_model(folder: Path) -> None:
    from openvino import opset13 as ops

    from lookalike.networks.openvino_setup import ov, save

    pixels = ops.parameter([-1, -1, -1, 3], np.uint8)
    channels_first = ops.transpose(ops.convert(pixels, np.float32), np.array([0, 3, 1, 2]))
    squares = ops.adaptive_avg_pool(channels_first, np.array([4, 4]))
    flat = ops.reshape(ops.transpose(squares, np.array([0, 2, 3, 1])), np.array([0, 48]), special_zero=True)
    folder.mkdir(parents=True)
    save(ov.Model([flat], [pixels]), folder / descriptions.OPENVINO_FILE)
    write_json(folder / descriptions.DESCRIPTION_FILE, to_builtins(NETWORK))
