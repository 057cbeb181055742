r"""Compare backbones over one data set: each goes through the graph, all end in one table and a plot.

    python benchmarks/backbones.py /tmp/compare --set extract.runtime=openvino \
        --run small model.backbone=MobileNetV2 model.layer=block_6_expand_relu --run large model.backbone=ResNet50

The first argument is a scratch clone of this project, made from its last commit if the folder does not exist. Each
--run is a name and settings, which `dvc exp run` there adds to those of --set and to params.yaml as committed. Whatever
a setting can name is a row: a fine-tuned network too ('finetune.networks=[finetuned]' extract.model=data/finetuned).
Afterwards `dvc exp show` in that folder holds the same rows, and `dvc exp apply NAME` brings one back. The stage
`benchmark`, which times searches, is not run.

A row that was run with these settings on this commit is not run again, but timed again, so that all are timed alike: a
comparison that was stopped goes on, and a row more costs one row.

images/s  the network alone on real pictures, warm, without the cache, in the row's runtime, precision and batch size;
          the rows take turns, and the best of the --rounds is told: what else the machine does only slows them.
CPU ms    what all cores together spent on an image, the least of the rounds. On a GPU it says little.
bytes     what the index holds of an image.

A row whose weights are random says nothing of its backbone's quality, and is marked.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from benchmarks import backbones_report
from lookalike.artifacts.arrays import load_images
from lookalike.artifacts.descriptions import describe
from lookalike.base import script
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_folder, write_json
from lookalike.base.machine import cores, cpu_name, gpu_names
from lookalike.runtimes import registry

ROOT = Path(__file__).resolve().parents[1]
KEPT = "compared"  # folder in the scratch clone's .git


@dataclass(frozen=True)
class Run:
    """A row to be: its name, which is also its experiment's, and its settings as KEY=VALUE."""

    name: str
    settings: tuple[str, ...]


def main() -> None:
    """Read the arguments, run the experiments, time the networks, print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="scratch clone that the experiments run in; made if it is not there")
    parser.add_argument("--run", action="append", nargs="+", default=[], metavar=("NAME", "KEY=VALUE"), help="a row")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every row")
    parser.add_argument("--images", type=int, default=256, help="pictures that are timed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of timing (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    parser.add_argument("--plot", type=Path, help="draw quality against cost here, a .png")
    args = parser.parse_args()
    wanted = [Run(name, (*args.set, *settings)) for name, *settings in args.run]
    check(wanted)
    if not args.clone.exists():
        command(["git", "clone", "--quiet", str(ROOT), str(args.clone)], ROOT)
    if not (args.clone / "dvc.yaml").is_file():
        raise LookalikeError(f"{args.clone} is no clone of this project; name one, or a folder that does not exist")
    done = [row_of(run, args.clone, args.images) for run in tqdm(wanted, desc="backbones", unit="row")]
    rows = [
        row.figures | {"images/s": rate, "CPU ms": milliseconds}
        for row, (rate, milliseconds) in zip(done, speeds(done, args.rounds), strict=True)
    ]
    table = pd.DataFrame(rows)
    table["Pareto"] = backbones_report.on_the_front(table["images/s"], table["mAP"])
    print(f"{', '.join([cpu_name(), f'{cores()} cores', *gpu_names()])}\n")
    print(backbones_report.markdown(table))
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.csv, index=False)
    if args.plot:
        backbones_report.draw(table, args.plot)


def check(wanted: list[Run]) -> None:
    """Raise LookalikeError unless there are rows, of different names, of settings that read as KEY=VALUE."""
    names = [run.name for run in wanted]
    if not names:
        raise LookalikeError("nothing to compare: give --run NAME KEY=VALUE ... once for each backbone")
    for run in wanted:
        if names.count(run.name) > 1:
            raise LookalikeError(f"--run {run.name} is given twice; a row needs a name of its own")
        if "=" in run.name:
            raise LookalikeError(f"--run {run.name}: the first word is the row's name; write --run NAME {run.name}")
        for setting in run.settings:
            if "=" not in setting:
                raise LookalikeError(f"--run {run.name}: {setting!r} is no setting; write KEY=VALUE")


@dataclass(frozen=True)
class Row:
    """What is kept of a run in the scratch clone's .git: its figures, its network, and pictures to time it with."""

    folder: Path
    settings: tuple[str, ...]
    commit: str
    figures: dict[str, Any]
    extract: dict[str, Any]  # that section of its params.yaml, the batch size as it was chosen

    @classmethod
    def load(cls, folder: Path) -> "Row":
        """Read it back; raises OSError or ValueError where there is none."""
        content = read_json(folder / "row.json")
        return cls(folder, tuple(content.pop("settings")), **content)

    def save(self) -> None:
        """Write it, last of all that is kept."""
        content = {name: value for name, value in vars(self).items() if name != "folder"}
        write_json(self.folder / "row.json", content)

    def load_network(self, pixels: np.ndarray) -> registry.Embedder:
        """The network, compiled and warm."""
        runtime = registry.runtime(self.extract["runtime"])
        size, batch_size = pixels.shape[1], self.extract["batch_size"]
        calibration = self.folder.parents[2] / self.extract["calibration"]
        embed = runtime.load(self.folder / "model", size, batch_size, self.extract["precision"], calibration)
        embed(pixels[:batch_size])
        return embed


def row_of(run: Run, clone: Path, images: int) -> Row:
    """What is kept of a run; it is run where that is of other settings or of another commit."""
    folder = clone.resolve() / ".git" / KEPT / run.name
    commit = command(["git", "rev-parse", "HEAD"], clone).strip()
    references = command(["git", "for-each-ref", "--format=%(refname)", "refs/exps"], clone).split()
    known = any(reference.endswith(f"/{run.name}") for reference in references)
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept = Row.load(folder)
        if known and (kept.settings, kept.commit) == (run.settings, commit):
            return kept
    if known:
        command(["dvc", "exp", "remove", run.name], clone)
    through_the_graph(run, clone)
    params = settings_of(clone)
    extract = params["extract"]
    extract["batch_size"] = extract["batch_size"] or read_json(clone / "data/features.json")["batch_size"]
    with new_folder(folder) as partial:
        shutil.copytree(clone / network_folder(params), partial / "model")
        pixels = load_images(clone / "data/processed").pixels
        np.save(partial / "pixels.npy", pixels[: max(images, extract["batch_size"])], allow_pickle=False)
    row = Row(folder, run.settings, commit, figures(run.name, clone), extract)
    row.save()
    return row


def through_the_graph(run: Run, clone: Path) -> None:
    """Run the graph in the clone with a row's settings, as an experiment of its name."""
    command(["git", "checkout", "--quiet", "HEAD", "--", "params.yaml"], clone)  # not the last row's settings
    settings = [word for setting in run.settings for word in ("--set-param", setting)]
    command(["dvc", "exp", "run", "--name", run.name, *settings, "evaluate"], clone)


def command(words: list[str], folder: Path) -> str:
    """Run a command of this environment in a folder, its output held back; what it ends with is the error."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()] or ["no reason"]
        raise LookalikeError(f"{' '.join(words)} failed in {folder}: {said[0].strip()}")
    return done.stdout


def figures(name: str, clone: Path) -> dict[str, Any]:
    """A row of the table, from what the stages wrote; speed left out."""
    metrics, index = read_json(clone / "metrics/metrics.json"), read_json(clone / "data/index.json")
    features = read_json(clone / "data/features.json")
    params = settings_of(clone)
    network = describe(clone / network_folder(params))
    return {
        "run": name,
        "backbone": f"{network.backbone}, {network.layer}, {network.pooling}",
        "weights": network.weights,
        "runtime": f"{params['extract']['runtime']} {features['precision']}",
        "D": network.dim,
        "parameters": network.parameters,
        "queries": metrics["queries"],
        "protocol": params["protocol"]["kind"],
        "mAP raw": metrics["mAP_raw"],
        "mAP": metrics["mAP"],
        "P@1 raw": metrics["P@1_raw"],
        "P@1": metrics["P@1"],
        "bytes": round(index["bytes"] / index["images"]),
    }


def read_json(path: Path) -> dict[str, Any]:
    """One of the small files that stages write."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def settings_of(clone: Path) -> dict[str, Any]:
    """The clone's params.yaml, as its last experiment left it."""
    content: dict[str, Any] = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    return content


def network_folder(params: dict[str, Any]) -> str:
    """The network files that were embedded with: `model`'s, or those that extract.model names."""
    folder: str = params["extract"]["model"]
    return folder


def speeds(rows: list[Row], rounds: int) -> list[tuple[float, float]]:
    """Time the rows' networks in turns; each one's most images a second, and least CPU milliseconds an image."""
    pixels = [np.load(row.folder / "pixels.npy", allow_pickle=False) for row in rows]  # uint8 (n, S, S, 3) each
    networks = [row.load_network(own) for row, own in zip(rows, pixels, strict=True)]
    found: list[list[tuple[float, float]]] = [[] for _ in rows]
    for _ in tqdm(range(rounds), desc="speed", unit="round"):
        for row, embed, own_pixels, own in zip(rows, networks, pixels, found, strict=True):
            own.append(timed(embed, own_pixels, row.extract["batch_size"]))
    return [(max(rate for rate, _ in own), min(ms for _, ms in own)) for own in found]


def timed(embed: registry.Embedder, pixels: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Embed pictures, as many as fill batches; images a second, and milliseconds of all cores an image."""
    count = max(1, len(pixels) // batch_size) * batch_size
    filled = np.resize(pixels, (count, *pixels.shape[1:]))
    start, busy = time.perf_counter(), time.process_time()
    for first in range(0, count, batch_size):
        embed(filled[first : first + batch_size])
    return count / (time.perf_counter() - start), 1000 * (time.process_time() - busy) / count


if __name__ == "__main__":
    script.run("backbones", main)
