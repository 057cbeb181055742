"""Compare settings of index.refine on features that are there: one process, one table.

Every combination of the --set values is fitted on the gallery and measured exactly, for each split seed; what is not
set is as in params.yaml. `dvc exp run -S` then records the winner.

    python benchmarks/refinement.py --set pca=64,128 --set augment=0,20
    python benchmarks/refinement.py --ablation --seeds 0-9
    python benchmarks/refinement.py --set expand=0,10,20 --validation     # choose settings without touching the test

--validation asks with images that are a query under none of the --seeds, in a gallery of all others: settings chosen
there can be reported on the seeds' queries, whose own figures had no part in the choice. Figures are means over seeds,
± their standard deviation; gain is the mean difference in mAP to raw cosine, with its 95 % interval by paired
bootstrap, for the first seed's queries.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from msgspec import convert, to_builtins
from msgspec.structs import replace
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from benchmarks import common
from lookalike.artifacts.arrays import Collection, Images
from lookalike.base import params, script
from lookalike.base.errors import LookalikeError, closest
from lookalike.evaluation import protocol
from lookalike.evaluation.bootstrap import interval
from lookalike.evaluation.measure import evaluate
from lookalike.evaluation.protocol import Split
from lookalike.index import build
from lookalike.refinement.refinement import OFF, Refinement, Settings

RESAMPLES = 1000


def main() -> None:
    """Read the arguments, measure each combination, print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=V1,V2", help="values of an index.refine key")
    parser.add_argument(
        "--ablation", action="store_true", help="each part of params.yaml's refinement alone, and all but it"
    )
    parser.add_argument("--seeds", default="0-4", help="split seeds, a range (default: %(default)s)")
    parser.add_argument("--validation", action="store_true", help="ask with images that no seed's split asks with")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    args = parser.parse_args()
    settings = params.load(args.params, "index", build.Settings).refine
    protocol_settings = params.load(args.params, "protocol", protocol.Settings)
    collection, images = common.load(args)
    splits = choose_splits(collection, images, protocol_settings, args.seeds, args.validation)
    rows = ablation(settings) if args.ablation else grid(settings, args.set)

    table, raw_ap = [], None
    for name, chosen in tqdm([("raw cosine", OFF), *rows], desc="refinement", unit="setting"):
        figures, first_ap = measure(collection, splits, chosen)
        raw_ap = first_ap if raw_ap is None else raw_ap
        labels = collection.labels[splits[0].queries]
        gain = interval(first_ap - raw_ap, labels, RESAMPLES, seed=0)
        dim = chosen.pca or collection.features.shape[1]
        table.append({"setting": name, "dims": dim, **figures,
                      "gain": f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"})  # fmt: skip
    frame = pd.DataFrame(table)
    print(f"{len(splits)} splits, {len(splits[0].queries)} queries, gallery {len(splits[0].gallery)}\n")
    print(common.markdown(frame))
    if args.csv:
        frame.to_csv(args.csv, index=False)


def choose_splits(
    collection: Collection, images: Images, settings: protocol.Settings, seeds: str, validation: bool
) -> list[Split]:
    """The splits of the seeds, or one whose queries are in none of theirs."""

    def split(seed: int) -> Split:
        chosen = replace(settings, seed=seed)
        return protocol.split(collection.paths, collection.labels, images.sha256, chosen)

    first, _, last = seeds.partition("-")
    try:
        numbers = range(int(first), int(last or first) + 1)
    except ValueError:
        raise LookalikeError(f"--seeds is {seeds!r}; write one number or a range such as 0-4") from None
    splits = [split(seed) for seed in numbers] if settings.kind == "holdout" else [split(settings.seed)]
    if not splits or splits[0].unmeasurable:
        raise LookalikeError(f"nothing can be measured: {splits[0].unmeasurable if splits else 'no seed'}")
    if not validation:
        return splits
    asked = np.unique(np.concatenate([each.queries for each in splits]))
    rest = np.setdiff1d(np.arange(len(collection.labels)), asked)
    rest = rest[(collection.labels[rest] != "") & np.isin(collection.labels[rest], collection.labels[asked])]
    rest = rest[~np.isin(images.sha256[rest], images.sha256[asked])]
    if not len(rest):
        raise LookalikeError("every image is a query under one of the seeds; give fewer --seeds")
    return [Split(rest, asked, np.zeros((len(rest), 0), np.int64), "", ())]


def grid(settings: Settings, choices: list[str]) -> list[tuple[str, Settings]]:
    """Every combination of the values given as KEY=V1,V2."""
    values: dict[str, list[Any]] = {}
    for choice in choices:
        key, _, text = choice.partition("=")
        if key not in Settings.__struct_fields__:
            raise LookalikeError(f"--set {choice}: {closest(key, list(Settings.__struct_fields__))}")
        values[key] = [yaml.safe_load(value) for value in text.split(",")]
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    full = to_builtins(settings)
    return [
        (
            " ".join(f"{key}={value}" for key, value in chosen.items()) or "params.yaml",
            params.checked(full | chosen, "index.refine", Settings),
        )
        for chosen in combinations
    ]


def ablation(settings: Settings) -> list[tuple[str, Settings]]:
    """Each part of a refinement alone, all of it, and all of it but each part; re-ranking alone and on top."""
    full = to_builtins(settings)
    off = to_builtins(OFF) | {"alpha": full["alpha"]}
    parts: dict[str, dict[str, Any]] = {
        "power": {"power": full["power"]},
        "PCA": {"pca": full["pca"]},
        "PCA, whitening": {"pca": full["pca"], "whiten": full["whiten"]},
        "augmentation": {"augment": full["augment"]},
        "query expansion": {"expand": full["expand"]},
        "re-ranking (300)": {"rerank": 300},
    }
    without = {"power": ["power"], "whitening": ["whiten"], "PCA": ["pca", "whiten"], "augmentation": ["augment"],
               "query expansion": ["expand"]}  # fmt: skip
    rows = [(f"{name} alone", off | changes) for name, changes in parts.items()]
    rows.append(("all (params.yaml)", full))
    rows += [(f"all but {name}", full | {key: off[key] for key in keys}) for name, keys in without.items()]
    rows.append(("all and re-ranking (300)", full | {"rerank": 300}))
    return [(name, convert(values, Settings)) for name, values in rows]


def measure(collection: Collection, splits: list[Split], settings: Settings) -> tuple[dict[str, Any], np.ndarray]:
    """Mean and spread over splits of the main figures, and the first split's average precisions."""
    found: dict[str, list[float]] = {"mAP": [], "class-mean mAP": [], "P@1": [], "P@10": []}
    first_ap = np.zeros(0)
    for split in splits:
        refinement = Refinement.fit(collection.features[split.gallery], settings)
        gallery = refinement.gallery(collection.features[split.gallery])
        result = evaluate(collection.features, collection.labels, split, refinement, gallery, [1, 10])
        first_ap = first_ap if len(first_ap) else result.per_query["AP"].to_numpy()
        found["mAP"].append(result.per_query["AP"].mean())
        found["class-mean mAP"].append(result.by_class["mAP"].mean())
        found["P@1"].append(result.per_query["P@1"].mean())
        found["P@10"].append(result.per_query["P@10"].mean())
    texts = {}
    for name, values in found.items():
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        texts[name] = f"{np.mean(values):.3f}{spread}"
    return texts, first_ap


if __name__ == "__main__":
    script.run("refinement", main)
