"""Fetch, verify and unpack the original files of one data set.

Reads   the internet, a folder, or nothing      depending on download.dataset in params.yaml
Writes  data/raw/<class>/<file>                 the original files, byte for byte
        data/raw/labels.csv                     path, label: one line per image, sorted by path
        data/raw.json                           counts and origin, for Git

    python stages/download.py data/raw
"""

import csv
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.base import params, script
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_folder, write_json
from lookalike.base.script import progress_bar
from lookalike.datasets import registry


def main() -> None:
    """Read the arguments, then write every image of the data set."""
    parser = script.parser(__doc__)
    parser.add_argument("raw", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "download", registry.Settings)

    labels: dict[PurePosixPath, str] = {}
    total = 0
    with new_folder(args.raw) as folder:
        with progress_bar("download", None, "image") as bar:
            for item in registry.items(settings):
                if item.path in labels:
                    raise LookalikeError(f"{settings.dataset}: {item.path} occurs twice; nothing was written")
                target = folder / item.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(item.content)
                labels[item.path] = item.label
                total += len(item.content)
                bar.update()
        if not labels:
            raise LookalikeError(f"{settings.dataset}: no image is left; check download.exclude {settings.exclude}")
        with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "label"])
            table.writerows(sorted((str(path), label) for path, label in labels.items()))

    classes = Counter(label for label in labels.values() if label)
    unlabelled = len(labels) - classes.total()
    trace = {
        "dataset": settings.dataset,
        "origin": registry.origin(settings),
        "images": len(labels),
        "unlabelled": unlabelled,
        "classes": len(classes),
        "bytes": total,
    }
    write_json(args.raw.with_suffix(".json"), trace)
    script.notice("download", f"{len(labels)} images in {len(classes)} classes, {unlabelled} without a label")


if __name__ == "__main__":
    script.run("download", main)
