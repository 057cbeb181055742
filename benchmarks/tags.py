"""What words beside a picture do to the search, at each weight, with words that are made here.

    python benchmarks/tags.py                                     # data/features, data/processed
    python benchmarks/tags.py --tagged 0.5 --right 0.9 --seed 1
    python benchmarks/tags.py --write tags.csv                    # the words, to try index.tags.file with

Nobody has tagged the digits, so tags are drawn by seed as careless people might give them: a share of the images has
some; its first word names the image's class, or, where it is wrong, another; two more are drawn from words that say
nothing. So the figures show how the mixing behaves, not what tags of yours are worth: evaluate measures that, as
mAP_tags. Measured for the protocol's queries, each with its own words, TF-IDF and refinement fitted on the gallery.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from benchmarks import common
from lookalike.base import params, script
from lookalike.evaluation import protocol
from lookalike.evaluation.measure import evaluate
from lookalike.evaluation.tag_fusion import mix_words
from lookalike.index import build
from lookalike.refinement.refinement import Refinement

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)
EMPTY = ("new", "scan", "archive", "box", "left", "page", "ink", "old")
K = 10


def main() -> None:
    """Read the arguments, draw the words, measure, print a table."""
    parser = common.parser(__doc__)
    parser.add_argument("--tagged", type=float, default=0.8, help="share that has words (default: %(default)s)")
    parser.add_argument("--right", type=float, default=0.7, help="share whose word is right (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--write", type=Path, help="write the words into this CSV")
    args = parser.parse_args()
    collection, images = common.load(args)
    paths, labels, features = collection.paths, collection.labels, np.asarray(collection.features)
    texts = drawn(paths, labels, args.tagged, args.right, args.seed)
    if args.write:
        with args.write.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "text"), *sorted(texts.items())])
    split = protocol.split(paths, labels, images.sha256, params.load(args.params, "protocol", protocol.Settings))
    refinement = Refinement.fit(features[split.gallery], params.load(args.params, "index", build.Settings).refine)
    gallery, rows = refinement.gallery(features[split.gallery]), []
    for weight in WEIGHTS:
        mix = mix_words(texts, weight, paths[split.queries], paths[split.gallery]) if weight else None
        figures = evaluate(features, labels, split, refinement, gallery, [1, K], mix=mix).per_query
        rows.append({
            "weight": f"{weight:g}",
            "mAP": f"{figures['AP'].mean():.3f}",
            "P@1": f"{figures['P@1'].mean():.3f}",
            f"P@{K}": f"{figures[f'P@{K}'].mean():.3f}",
        })  # fmt: skip
    print(f"{' '.join(['python', *sys.argv])}\n")
    print(f"{len(texts)} of {len(paths)} images have words; {len(split.queries)} queries, {len(gallery)} images\n")
    print(common.markdown(pd.DataFrame(rows)))


def drawn(paths: np.ndarray, labels: np.ndarray, tagged: float, right: float, seed: int) -> dict[str, str]:
    """Words of some of the images, by path."""
    draw = np.random.default_rng(seed)
    classes = sorted(set(labels.tolist()))
    texts = {}
    for path, label in zip(paths.tolist(), labels.tolist(), strict=True):
        has, is_right = draw.random(2) < (tagged, right)
        others = [each for each in classes if each != label]
        word = label if is_right or not others else others[draw.integers(len(others))]
        if has:
            texts[path] = " ".join([f"class{word}", *draw.choice(EMPTY, 2, replace=False).tolist()])
    return texts


if __name__ == "__main__":
    script.run("tags", main)
