"""What adding images to a built index does to the search, against building it anew with them.

    python benchmarks/changes.py                                       # data/features, data/processed
    python benchmarks/changes.py --features F --processed P --share 0.1 --csv changes.csv

Of the gallery (section protocol), a share drawn by seed is left out of the index, then added to it. Measured for the
protocol's queries: mAP and P@1 over all images, and which share of the first ten hits was added, which should be what
was added of all images. Vectors may join the gallery in three ways: as they are projected, with the neighbourhood's
full weight, as an image of the gallery has, and as `add` does it, with a smaller one. Last, one query at a time, what a
search costs with so many changes, added and removed, against the index alone.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from benchmarks import common
from lookalike.base import params, script
from lookalike.base.machine import cores, cpu_name
from lookalike.collection.overlay import Changed
from lookalike.evaluation import protocol
from lookalike.evaluation.measure import evaluate
from lookalike.evaluation.protocol import Split
from lookalike.index import build
from lookalike.refinement import refinement as refine
from lookalike.refinement.refinement import Refinement

EXACT = build.Design(kind="flat", storage="float32")
GRAPH = build.Design(kind="hnsw", storage="float16", neighbors=16, ef_construction=200, effort=20)
FIRST = 10
REPEATS = 5


def main() -> None:
    """Read the arguments, measure, print two tables."""
    parser = common.parser(__doc__)
    parser.add_argument("--share", type=float, default=0.1, help="of the gallery that is added (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the first table here too")
    args = parser.parse_args()
    collection, images = common.load(args)
    split = protocol.split(
        collection.paths, collection.labels, images.sha256, params.load(args.params, "protocol", protocol.Settings)
    )
    chosen = params.load(args.params, "index", build.Settings).refine
    drawn = np.random.default_rng(args.seed).permutation(len(split.gallery))
    count = int(len(drawn) * args.share)
    added, kept = split.gallery[np.sort(drawn[:count])], split.gallery[np.sort(drawn[count:])]
    features = np.asarray(collection.features)

    refinement = Refinement.fit(features[kept], chosen)
    gallery, projected = refinement.gallery(features[kept]), refinement.project(features[added])
    ways = {"as projected": projected} | {
        name: joined(refinement, gallery, projected, weight)
        for name, weight in (("full weight", 1.0), ("as `add` does it", refine.JOIN_WEIGHT))
    }
    order = np.concatenate([kept, added])
    changed = Split(split.queries, order, np.full((len(split.queries), 0), -1), "", ())
    rows = [
        measured(name, features, collection.labels, changed, refinement, np.concatenate([gallery, vectors]), len(kept))
        for name, vectors in ways.items()
    ]
    anew = Refinement.fit(features[order], chosen)
    rows.append(
        measured("built anew", features, collection.labels, changed, anew, anew.gallery(features[order]), len(kept))
    )
    table = pd.DataFrame(rows)
    print(f"{' '.join(['python', *sys.argv])}\n{cpu_name()}, {cores()} cores\n")
    print(f"{len(kept)} images indexed, {len(added)} added ({len(added) / len(order):.1%} of all)\n")
    print(common.markdown(table))
    print(f"\nMedian milliseconds a search of projected queries, k = {FIRST}\n")
    searches = costs(gallery, ways["as `add` does it"], refinement.project(features[split.queries]))
    print(common.markdown(pd.DataFrame(searches)))
    if args.csv:
        table.to_csv(args.csv, index=False)


def joined(refinement: Refinement, gallery: np.ndarray, projected: np.ndarray, weight: float) -> np.ndarray:
    """What `join` makes of vectors, float32 (M, d), with another weight."""
    index = build.build(gallery, EXACT)
    before, refine.JOIN_WEIGHT = refine.JOIN_WEIGHT, weight
    try:
        return refinement.join(projected, index.search, index.vectors)
    finally:
        refine.JOIN_WEIGHT = before


def measured(
    name: str, features: np.ndarray, labels: np.ndarray, split: Split, refinement: Refinement, gallery: np.ndarray,
    kept: int,
) -> dict[str, Any]:  # fmt: skip
    """A row: figures of a gallery whose rows from `kept` on were added."""
    result = evaluate(features, labels, split, refinement, gallery, [1, FIRST])
    figures = result.per_query[["AP", "P@1"]].mean().round(4)
    share = (result.rows[:, :FIRST] >= kept).mean()
    return {"added images' vectors": name, "mAP": figures["AP"], "P@1": figures["P@1"],
            f"added among the first {FIRST}": f"{share:.1%}"}  # fmt: skip


def costs(gallery: np.ndarray, added: np.ndarray, queries: np.ndarray) -> list[dict[str, Any]]:
    """Rows: the index alone, with the added rows, and with as many removed too."""
    table = []
    for design in (EXACT, GRAPH):
        index = build.build(gallery, design)
        none = np.zeros((0, gallery.shape[1]), np.float32)
        gone = np.ones(len(gallery) + len(added), dtype=bool)
        gone[np.linspace(0, len(gallery) - 1, len(added)).astype(int)] = False
        ways = {
            "unchanged": Changed(index, np.ones(len(gallery), dtype=bool), none),
            f"{len(added)} added": Changed(index, np.ones(len(gone), dtype=bool), added),
            f"{len(added)} added, as many removed": Changed(index, gone, added),
        }
        best = {name: np.full(len(queries), np.inf) for name in ways}
        for _ in range(REPEATS):  # in turn, so that noise hits all alike
            for name, way in ways.items():
                for place, query in enumerate(queries):
                    start = time.perf_counter()
                    way.search(query[np.newaxis], FIRST)
                    best[name][place] = min(best[name][place], time.perf_counter() - start)
        table.append({"index": design.kind} | {name: f"{np.median(each) * 1000:.3f}" for name, each in best.items()})
    return table


if __name__ == "__main__":
    script.run("changes", main)
