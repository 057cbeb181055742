"""Embed every preprocessed image.

Reads   data/processed/images.npy           uint8, (N, S, S, 3)
        data/model                          the embedding network; extract.model names it
        extract.calibration                 uint8, (n, S, S, 3), for int8 only
        the user's cache folder             embeddings of earlier runs; see docs/extraction.md
Writes  data/features/features.npy          float32, (N, D)
        data/features/image_paths.npy       str, (N,): row i names image i
        data/features/labels.npy            str, (N,): classes, "" for none
        data/features/embedding.json        network, image size and fit, which a query must share
        data/features.json                  counts and shape, for Git

    python stages/extract.py data/processed data/model data/features
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts import descriptions
from lookalike.artifacts.arrays import ArrayWriter, load_images, pixel_blocks
from lookalike.base import params, script
from lookalike.base.files import new_folder, write_json
from lookalike.base.script import progress_bar
from lookalike.extraction.checks import check_directions, check_precision
from lookalike.extraction.extractor import Extractor
from lookalike.runtimes import registry


class Settings(params.Section, frozen=True):
    """Section `extract` of params.yaml."""

    model: str
    runtime: registry.Choice
    precision: registry.Precision
    batch_size: Annotated[int, Meta(ge=0, le=4096)]
    calibration: str
    min_cosine: Annotated[float, Meta(ge=0, le=1)]


def main() -> None:
    """Read the arguments, then embed all images, from the cache where possible."""
    parser = script.parser(__doc__)
    parser.add_argument("processed", type=Path, help="output folder of preprocess")
    parser.add_argument("model", type=Path, help="output folder of model or finetune")
    parser.add_argument("features", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "extract", Settings)
    images = load_images(args.processed)
    count, size = images.pixels.shape[:2]
    embedding = descriptions.Embedding(descriptions.describe(args.model), size, images.fit)
    dim = embedding.network.dim
    extractor = Extractor(
        settings.runtime, args.model, size, settings.batch_size, settings.precision, Path(settings.calibration)
    )
    trace: dict[str, Any] = {
        "images": count,
        "shape": [count, dim],
        "dtype": "float32",
        "classes": len(set(images.labels.tolist()) - {""}),
        "backbone": embedding.network.backbone,
        "runtime": extractor.recipe.runtime,
        "precision": settings.precision,
    }
    if settings.batch_size == 0:
        trace["batch_size"] = extractor.recipe.batch_size
    if settings.precision != "float32":
        trace["least_cosine_to_float32"] = check_precision(extractor, args.model, images, settings.min_cosine)
    with new_folder(args.features) as folder:
        with (
            ArrayWriter(folder / "features.npy", (count, dim), np.float32) as features,
            progress_bar("extract", count, "image") as bar,
        ):
            known = 0

            def write(rows: np.ndarray, block: np.ndarray) -> None:
                check_directions(images.paths[rows], block, settings.precision)
                features.write(rows, block)

            def progress(rows: int, found: int) -> None:
                nonlocal known
                known += found
                bar.set_postfix_str(f"{known / (bar.n + rows):.0%} known", refresh=False)
                bar.update(rows)

            extractor.embed(pixel_blocks(args.processed), write, progress)
        for name in ("image_paths.npy", "labels.npy"):
            shutil.copyfile(args.processed / name, folder / name)
        embedding.save(folder)
    write_json(args.features.with_suffix(".json"), trace)
    way = f"{trace['runtime']}, {settings.precision}"
    script.notice("extract", f"{count} images, {known} of them from the cache or duplicates; {way}")


if __name__ == "__main__":
    script.run("extract", main)
