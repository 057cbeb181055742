"""What fine-tuning gains: for images of known classes, and for classes that training never saw.

For each split seed, two trainings on its gallery by section `finetune` of params.yaml: one on all classes, one with a
share of them, drawn anew for each seed, left out altogether. Each is asked with the split's queries, as is the network
as it came.

    python benchmarks/finetuning.py --seeds 0-2 --held-out 0.3333
    python benchmarks/finetuning.py --refine pca=256 --refine whiten=0.3 --refine expand=10 --out table.md

Reads   data/processed, data/model      see README.md
Writes  --out                           the tables in Markdown; they are printed anyway

Figures are means over seeds. A gain is that over the same row's untrained network, refined by params.yaml if the row is
refined, query by query over all seeds, with its 95 % interval by bootstrap within seed and class. --refine adds rows
with other settings of index.refine; choose them on validation queries, not here.
"""

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from benchmarks.common import markdown
from benchmarks.refinement import grid
from lookalike.artifacts.arrays import Images, load_images
from lookalike.base import machine, params, script
from lookalike.base.errors import LookalikeError
from lookalike.evaluation import protocol
from lookalike.evaluation.bootstrap import interval
from lookalike.evaluation.measure import evaluate
from lookalike.evaluation.protocol import Split
from lookalike.finetuning import finetune, training_images
from lookalike.finetuning.settings import Settings
from lookalike.index import build
from lookalike.refinement.refinement import OFF, Refinement
from lookalike.refinement.refinement import Settings as Refine

RESAMPLES = 1000
SHOWN = 5  # classes at either end


@dataclass(frozen=True)
class Run:
    """One training, its split and what was found."""

    seed: int
    split: Split
    held_out: tuple[str, ...]
    seconds: float
    summary: str
    before: dict[str, pd.DataFrame]  # refinement -> one row a query: label, AP, P@1
    after: dict[str, pd.DataFrame]


def main() -> None:
    """Read the arguments, train and measure for each seed, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processed", type=Path, default=Path("data/processed"))
    parser.add_argument("--model", type=Path, default=Path("data/model"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--seeds", default="0-2", help="split seeds, a range (default: %(default)s)")
    parser.add_argument("--held-out", type=float, default=1 / 3, help="share of the classes; 0: known classes only")
    parser.add_argument("--refine", action="append", default=[], metavar="KEY=V", help="a value of index.refine")
    parser.add_argument("--out", type=Path, help="write the tables here too")
    args = parser.parse_args()
    settings = params.load(args.params, "finetune", Settings)
    split_settings = params.load(args.params, "protocol", protocol.Settings)
    refine = params.load(args.params, "index", build.Settings).refine
    ways = {"raw": OFF, "refined": refine}
    if args.refine:
        name, chosen = grid(refine, args.refine)[0]
        ways[f"refined, {name}"] = chosen
    images = load_images(args.processed)
    questions = {"all": replace(settings, held_out_classes=0.0)}
    if args.held_out:
        questions["held out"] = replace(settings, held_out_classes=args.held_out)
    runs: dict[str, list[Run]] = {
        name: [run(images, args.model, replace(split_settings, seed=seed), chosen, ways) for seed in seeds(args.seeds)]
        for name, chosen in questions.items()
    }
    text = report(runs, ways, images)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


def seeds(text: str) -> range:
    """Parse 0-2 or 3."""
    first, _, last = text.partition("-")
    try:
        return range(int(first), int(last or first) + 1)
    except ValueError:
        raise LookalikeError(f"--seeds is {text!r}; write one number or a range such as 0-4") from None


def run(
    images: Images, model: Path, split_settings: protocol.Settings, settings: Settings, ways: dict[str, Refine]
) -> Run:
    """Train on one split's gallery and ask its queries, before and after."""
    split = protocol.split(images.paths, images.labels, images.sha256, split_settings)
    chosen = training_images.choose(images.paths, images.labels, images.sha256, split_settings, settings)
    every = np.arange(len(images.labels))
    start = time.monotonic()
    tuned = finetune.tune(images, model, chosen, settings, lambda row: None)
    seconds = time.monotonic() - start
    script.notice("benchmark", f"split seed {split_settings.seed}: {tuned.summary()}; {seconds:.0f} s")
    before = finetune.untrained(images, model, settings)
    after = tuned.trainer.embed(every)
    return Run(
        split_settings.seed, split, chosen.held_out, seconds, tuned.summary(),
        {name: ask(before, images.labels, split, way) for name, way in ways.items()},
        {name: ask(after, images.labels, split, way) for name, way in ways.items()},
    )  # fmt: skip


def ask(features: np.ndarray, labels: np.ndarray, split: Split, way: Refine) -> pd.DataFrame:
    """What the queries found in the gallery: label, AP and P@1 of each."""
    gallery = features[split.gallery]
    refinement = Refinement.fit(gallery, way)
    found = evaluate(features, labels, split, refinement, refinement.gallery(gallery), [1])
    return found.per_query[["label", "AP", "P@1"]]


def report(runs: dict[str, list[Run]], ways: dict[str, Refine], images: Images) -> str:
    """All tables, with the command and the machine."""
    known = runs["all"]
    times = [each.seconds for each in known]
    parts = [
        f"```console\npython benchmarks/finetuning.py {shlex.join(sys.argv[1:])}\n```",
        f"{len(images.labels)} images; {len(known)} splits of {len(known[0].split.queries)} queries and "
        f"{len(known[0].split.gallery)} in the gallery; {machine.cpu_name()}, {machine.cores()} cores. A training took "
        f"{min(times):.0f} to {max(times):.0f} s (the first also computes what the frozen layers make of the views, "
        "unless that is kept from before).",
        "### New images of known classes",
        table(known, ways, lambda run, labels: np.ones(len(labels), bool)),
        per_class(known, list(ways)[-1]),
    ]
    if "held out" in runs:
        held = runs["held out"]
        parts += [
            "### New classes",
            f"{len(held[0].held_out)} classes, others for each seed, were left out of training. Their queries:",
            table(held, ways, lambda run, labels: np.isin(labels, run.held_out)),
            "In the same trainings, queries of the classes that were trained on:",
            table(held, ways, lambda run, labels: ~np.isin(labels, run.held_out)),
        ]
    return "\n\n".join(parts) + "\n"


def table(runs: list[Run], ways: dict[str, Refine], which: Any) -> str:
    """One row a network and refinement: figures, and the gain in mAP and P@1 over the untrained network."""
    rows = []
    for network in ("untrained", "fine-tuned"):
        for way in ways:
            own = [select(each, network, way, which) for each in runs]
            base = [select(each, "untrained", "raw" if way == "raw" else "refined", which) for each in runs]
            row = {"network": network, "search": way}
            for name, values in (
                ("mAP", [frame["AP"].mean() for frame in own]),
                ("class-mean mAP", [frame.groupby("label")["AP"].mean().mean() for frame in own]),
                ("P@1", [frame["P@1"].mean() for frame in own]),
            ):
                spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                row[name] = f"{np.mean(values):.3f}{spread}"
            for name, figure in (("gain in mAP", "AP"), ("gain in P@1", "P@1")):
                row[name] = paired(own, base, figure)
            rows.append(row)
    return markdown(pd.DataFrame(rows))


def select(each: Run, network: str, way: str, which: Any) -> pd.DataFrame:
    """The queries of one run that a question is about."""
    frame = (each.before if network == "untrained" else each.after)[way]
    return frame[which(each, frame["label"].to_numpy())]


def paired(own: list[pd.DataFrame], base: list[pd.DataFrame], figure: str) -> str:
    """Mean difference, query by query, with its interval."""
    values = np.concatenate([(a[figure] - b[figure]).to_numpy() for a, b in zip(own, base, strict=True)])
    strata = np.concatenate([[f"{seed}/{label}" for label in frame["label"]] for seed, frame in enumerate(own)])
    gain = interval(values, strata, RESAMPLES, seed=0)
    return f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def per_class(runs: list[Run], way: str) -> str:
    """The classes that gain most and least, against the untrained network refined by params.yaml."""
    frames = []
    for each in runs:
        frame = each.after[way].rename(columns={"AP": "after"})
        frames.append(frame.assign(before=each.before["refined"]["AP"]))
    means = pd.concat(frames).groupby("label").agg(
        queries=("after", "size"), before=("before", "mean"), after=("after", "mean")
    )  # fmt: skip
    means["gain"] = means["after"] - means["before"]
    ordered = means.sort_values(["gain"], ascending=False, kind="stable").reset_index(names="class")
    shown = pd.concat([ordered.head(SHOWN), ordered.tail(SHOWN)]).drop_duplicates("class")
    for name in ("before", "after"):
        shown[name] = shown[name].map("{:.3f}".format)
    shown["gain"] = shown["gain"].map("{:+.3f}".format)
    loses = int((means["gain"] < 0).sum())
    heading = f"mAP of the classes that gain most and least ({way}); {loses} of {len(means)} lose:"
    return heading + "\n\n" + markdown(shown)


if __name__ == "__main__":
    script.run("finetuning", main)
