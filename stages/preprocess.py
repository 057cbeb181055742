"""Decode every original into an upright RGB square.

Reads   data/raw                                the original files and labels.csv
Writes  data/processed/images.npy               uint8, (N, S, S, 3)
        data/processed/image_paths.npy          str, (N,): paths below data/raw; rows are sorted by path
        data/processed/labels.npy               str, (N,): classes, "" for none
        data/processed/sha256.npy               str, (N,): hex SHA-256 of the original files
        data/processed/fit.txt                  preprocess.fit, which a query must share
        data/processed/rejected.csv             path, reason: the files that could not be decoded
        data/processed.json                     counts and shape, for Git

    python stages/preprocess.py data/raw data/processed
"""

import csv
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import FIT_FILE, RowWriter, save_strings
from lookalike.base import params, script
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_folder, write_json
from lookalike.base.script import progress_bar
from lookalike.images import parallel


class Settings(params.Section, frozen=True):
    """Section `preprocess` of params.yaml."""

    image_size: Annotated[int, Meta(ge=32, le=1024)]
    fit: Literal["crop", "pad", "stretch"]
    max_pixels: Annotated[int, Meta(ge=1)]
    max_rejected: Annotated[float, Meta(ge=0, le=1)]
    workers: Annotated[int, Meta(ge=0, le=256)]


def main() -> None:
    """Read the arguments, then decode the images that labels.csv lists."""
    parser = script.parser(__doc__)
    parser.add_argument("raw", type=Path, help="folder of original files with labels.csv")
    parser.add_argument("processed", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "preprocess", Settings)

    listed = read_labels(args.raw / "labels.csv")
    size = settings.image_size
    decoded = parallel.decode_files(
        [args.raw / path for path, _ in listed], size, settings.fit, settings.max_pixels, settings.workers
    )
    kept: list[tuple[str, str, str]] = []  # path, label, sha256
    rejected: list[tuple[str, str]] = []  # path, reason
    with new_folder(args.processed) as folder:
        with (
            RowWriter(folder / "images.npy", (size, size, 3), np.uint8) as rows,
            progress_bar("preprocess", len(listed), "image") as bar,
        ):
            for (path, label), result in zip(listed, decoded, strict=True):
                if result.pixels is None:
                    rejected.append((path, result.reason))
                else:
                    rows.append(result.pixels[np.newaxis])
                    kept.append((path, label, result.sha256))
                bar.update()
        check_rejected(rejected, len(listed), settings.max_rejected)
        save_strings(folder / "image_paths.npy", [path for path, _, _ in kept])
        save_strings(folder / "labels.npy", [label for _, label, _ in kept])
        save_strings(folder / "sha256.npy", [sha256 for _, _, sha256 in kept])
        (folder / FIT_FILE).write_text(f"{settings.fit}\n", encoding="utf-8")
        with (folder / "rejected.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "reason"])
            table.writerows(rejected)

    trace = {
        "images": len(kept),
        "shape": [len(kept), size, size, 3],
        "dtype": "uint8",
        "classes": len({label for _, label, _ in kept} - {""}),
        "distinct_files": len({sha256 for _, _, sha256 in kept}),
        "rejected": len(rejected),
    }
    write_json(args.processed.with_suffix(".json"), trace)
    if rejected:
        script.notice("preprocess", f"{len(rejected)} of {len(listed)} files rejected: {args.processed}/rejected.csv")


def read_labels(path: Path) -> list[tuple[str, str]]:
    """Read path and label of every image from labels.csv, sorted by path."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            _, *rows = ((name, label) for name, label in csv.reader(file))
            return sorted(rows)
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro download") from None
    except ValueError:  # a row of another length, no header, or not UTF-8
        raise LookalikeError(f"{path} is not a table of path and label; make it anew: dvc repro download") from None


def check_rejected(rejected: list[tuple[str, str]], files: int, most: float) -> None:
    """Raise LookalikeError if more than a fraction `most` of the files were rejected, or all were."""
    if len(rejected) > most * files or len(rejected) == files:
        listed = "".join(f"\n  {path}: {reason}" for path, reason in rejected[:10])
        raise LookalikeError(
            f"{len(rejected)} of {files} files rejected, more than preprocess.max_rejected = {most}; repair or remove "
            f"them, or raise the limit. The first ten:{listed}"
        )


if __name__ == "__main__":
    script.run("preprocess", main)
