"""Embed every preprocessed image.

Reads   data/processed/images.npy           uint8, (N, S, S, 3)
        data/model                          the embedding network; extract.model names it
        extract.calibration                 uint8, (n, S, S, 3), for int8
        the user's cache folder             what was embedded before; see docs/extraction.md
Writes  data/features/features.npy          float32, (N, D)
        data/features/image_paths.npy       row i names image i
        data/features/labels.npy            row i: its class, "" if it has none
        data/features/embedding.json        network and picture size and fit, which a query must share
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

from lookalike import network, params, runtimes, stage
from lookalike.collection import ArrayWriter, Images, load_images, pixel_blocks
from lookalike.embedding import Extractor
from lookalike.errors import LookalikeError
from lookalike.files import new_folder, write_json
from lookalike.progress import progress_bar
from lookalike.vectors import unit_length, without_direction

SAMPLE = 32  # images whose embeddings at a lower precision are compared with float32


class Settings(params.Section, frozen=True):
    """Section `extract` of params.yaml."""

    model: str
    runtime: runtimes.Choice
    precision: runtimes.Precision
    batch_size: Annotated[int, Meta(ge=0, le=4096)]
    calibration: str
    min_cosine: Annotated[float, Meta(ge=0, le=1)]


def main() -> None:
    """Read the arguments, then embed what the cache does not know."""
    parser = stage.parser(__doc__)
    parser.add_argument("processed", type=Path, help="what preprocess wrote")
    parser.add_argument("model", type=Path, help="what model wrote")
    parser.add_argument("features", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "extract", Settings)
    images = load_images(args.processed)
    count, size = images.pixels.shape[:2]
    embedding = network.Embedding(network.describe(args.model), size, images.fit)
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
        trace["least_cosine_to_float32"] = check_precision(extractor, args.model, images, settings)
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
    stage.notice("extract", f"{count} images, {known} of them from the cache or twins of others; {way}")


def check_precision(extractor: Extractor, model: Path, images: Images, settings: Settings) -> float:
    """Compare a sample's embeddings, float32 (n, D), with those in float32; return the least cosine.

    The sample is those images whose files have the lowest hashes, so that a collection that grows keeps most of it.
    Raises LookalikeError if the least cosine is below extract.min_cosine.
    """
    rows = np.sort(np.argsort(images.sha256, kind="stable")[:SAMPLE])
    reference = Extractor("openvino", model, images.pixels.shape[1], SAMPLE, "float32")
    full, low = (
        unit_length(embeddings(each, images.paths[rows], images.pixels[rows])) for each in (reference, extractor)
    )
    cosines = (full * low).sum(axis=1)  # (n,)
    worst = int(cosines.argmin())
    if cosines[worst] < settings.min_cosine:
        raise LookalikeError(
            f"extract.precision {settings.precision} moves the embedding of {images.paths[rows[worst]]} to a cosine of "
            f"{cosines[worst]:.4f} to float32, below extract.min_cosine {settings.min_cosine}; choose another "
            "precision, calibrate int8 on more images, or allow less"
        )
    return round(float(cosines[worst]), 6)


def embeddings(extractor: Extractor, paths: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Embed images held in memory: str (n,) and uint8 (n, S, S, 3) -> float32 (n, D)."""
    result = np.empty((len(pixels), extractor.recipe.dim), np.float32)

    def write(rows: np.ndarray, block: np.ndarray) -> None:
        check_directions(paths[rows], block, extractor.recipe.precision)
        result[rows] = block

    extractor.embed([pixels], write)
    return result


def check_directions(paths: np.ndarray, block: np.ndarray, precision: str) -> None:
    """Raise LookalikeError for an embedding, a row of float32 (n, D), that cannot be compared with others."""
    for bad in without_direction(block)[:1]:
        raise LookalikeError(
            f"the embedding of {paths[bad]} is zero or not finite, so nothing can be compared with it; "
            f"extract.precision is {precision}, try float32; or the weights are broken"
        )


if __name__ == "__main__":
    stage.run("extract", main)
