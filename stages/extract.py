"""Embed every preprocessed image.

Reads   data/processed/images.npy           uint8, (N, S, S, 3)
        data/model                          the embedding network
Writes  data/features/features.npy          float32, (N, D)
        data/features/image_paths.npy       row i names image i
        data/features/labels.npy            row i: its class, "" if it has none
        data/features.json                  counts and shape, for Git

    python stages/extract.py data/processed data/model data/features
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike import params, stage
from lookalike.collection import RowWriter, load_images
from lookalike.embedding import embed
from lookalike.errors import LookalikeError
from lookalike.files import new_folder, write_json
from lookalike.progress import progress_bar
from lookalike.vectors import without_direction


class Settings(params.Section):
    """Section `extract` of params.yaml."""

    precision: Literal["float32", "float16", "bfloat16"]
    batch_size: Annotated[int, Field(ge=1, le=4096)]


def main() -> None:
    """Read the arguments, then run the images through the network."""
    parser = stage.parser(__doc__)
    parser.add_argument("processed", type=Path, help="what preprocess wrote")
    parser.add_argument("model", type=Path, help="what model wrote")
    parser.add_argument("features", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "extract", Settings)
    images = load_images(args.processed)

    from lookalike import backbones  # TensorFlow: seconds that --help and a mistake in params need not wait
    from lookalike.runtimes import tensorflow

    count, size = images.pixels.shape[:2]
    embedder = tensorflow.load(args.model, size, settings.batch_size, settings.precision)
    stage.notice("extract", f"{count} images on {', '.join(tensorflow.devices())}, {settings.precision}")
    dim = embedder(np.zeros((settings.batch_size, size, size, 3), np.uint8)).shape[1]
    with new_folder(args.features) as folder:
        with (
            RowWriter(folder / "features.npy", (dim,), np.float32) as rows,
            progress_bar("extract", count, "image") as bar,
        ):
            for block in embed(images.pixels, embedder, settings.batch_size):
                for row in len(rows) + without_direction(block)[:1]:
                    raise LookalikeError(
                        f"the embedding of {images.paths[row]} is zero or not finite, so nothing can be compared with "
                        f"it; extract.precision is {settings.precision}, try float32; or the weights are broken"
                    )
                rows.append(block)
                bar.update(len(block))
        for name in ("image_paths.npy", "labels.npy"):
            shutil.copyfile(args.processed / name, folder / name)

    write_json(args.features.with_suffix(".json"), {
        "images": count,
        "shape": [count, dim],
        "dtype": "float32",
        "classes": len(set(images.labels.tolist()) - {""}),
        "backbone": backbones.describe(args.model).backbone,
        "precision": settings.precision,
        "runtime": tensorflow.version(),
    })  # fmt: skip


if __name__ == "__main__":
    stage.run("extract", main)
