"""Run the committed pipeline twice, from nothing, and compare: the runs with each other, and with what is committed.

Each run is a clean clone of the last commit without a single output, with an empty home and empty caches; its packages
are those of this environment. The two must give the same dvc.lock, apart from the outputs that hold times. Then the
first is compared with the committed outputs: the same bytes, or, as on another processor, figures within a tolerance.

    make reproduce
    python proof/reproduce.py --tolerance 0.005

Prints what differs, artifact by artifact in the order of the graph, by how much, and where to look. Ends with status 0
if the runs agree and the committed figures are met, 1 if not, 2 if a run failed.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.base.files import remove
from lookalike.base.machine import cpu_name
from proof.effects.graph import stages

ROOT = Path(__file__).resolve().parents[1]
METRICS = "metrics/metrics.json"
TOLERANCE = 0.01  # of 1: bfloat16 moves mAP by less than 0.002 (docs/extraction.md), another processor by less still
TIMED = re.compile(r"metrics/latency\.json|plots/(latency|operating_curve)\.(csv|png)")
# What a stage's outputs depend on that dvc.yaml cannot name.
WHERE_TO_LOOK = {
    "download": "another version of scikit-learn (digits), or another archive; is every listing sorted?",
    "preprocess": "the version of Pillow and of the libraries in it; is the order of the processes' results kept?",
    "model": "the versions of TensorFlow and OpenVINO; is every draw seeded by model.seed?",
    "extract": "the processor, extract.batch_size, the versions of TensorFlow and OpenVINO: the last bits are theirs",
    "index": "index.threads above 1, the version of FAISS, the processor's kernels",
    "evaluate": "a draw without evaluate.seed, an order that depends on threads, the version of scikit-learn (t-SNE)",
    "benchmark": "only outputs without times are compared; their columns come from the index that was chosen",
}


@dataclass(frozen=True)
class Difference:
    """An output of a stage that two folders do not agree in."""

    stage: str
    out: str
    how: str

    def __str__(self) -> str:
        return f"  {self.stage}: {self.out}: {self.how}"


# --- running ---------------------------------------------------------------------------------------------------------


def clone(folder: Path) -> Path:
    """Clone the last commit, as it is."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def environment(home: Path) -> dict[str, str]:
    """The programs of this environment, and none of the user's caches and settings."""
    home.mkdir()
    private = ("LOOKALIKE_", "XDG_", "KERAS_", "DVC_", "MPLCONFIGDIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"HOME": str(home), "PATH": programs, "DVC_NO_ANALYTICS": "1"}


def run(folder: Path) -> None:
    """Clone, delete every output, and run the pipeline; raises CalledProcessError if it fails."""
    clone(folder)
    for stage in stages(folder).values():
        for out in stage.outs:
            remove(folder / out)
    for lock in folder.rglob("dvc.lock"):
        lock.unlink()
    start = time.monotonic()
    subprocess.run(["dvc", "repro", "--quiet"], cwd=folder, env=environment(folder.with_name(f"{folder.name}-home")),
                   check=True)  # fmt: skip
    print(f"{folder.name}: {time.monotonic() - start:.0f} s", flush=True)


# --- comparing -------------------------------------------------------------------------------------------------------


def outputs(folder: Path) -> dict[tuple[str, str], str]:
    """What dvc.lock says: (stage, output) and its hash, in the order of the graph, times left out."""
    locked: dict[str, Any] = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    order = [name for name in WHERE_TO_LOOK if name in locked] + [name for name in locked if name not in WHERE_TO_LOOK]
    return {
        (name, out["path"]): out["md5"]
        for name in order
        for out in locked[name].get("outs", [])
        if not TIMED.fullmatch(out["path"])
    }


def compare(first: Path, second: Path) -> list[Difference]:
    """Every output that two folders, each with a dvc.lock, do not agree in; and every setting or input."""
    one, other = outputs(first), outputs(second)
    found = [
        Difference(stage, "dvc.lock", text)
        for stage, text in inputs(first, second, {path for _, path in one.keys() | other.keys()})
    ]
    for key in dict.fromkeys([*one, *other]):
        if key not in one or key not in other:
            found.append(Difference(*key, f"only in {(first if key in one else second).name}"))
        elif one[key] != other[key]:
            found.append(Difference(*key, explain(first / key[1], second / key[1])))
    return found


def inputs(first: Path, second: Path, made: frozenset[str] | set[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Commands, settings and source files that differ, by stage; not what is `made` by another stage."""
    locks = [yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"] for folder in (first, second)]
    for name in locks[0].keys() & locks[1].keys():
        one, other = locks[0][name], locks[1][name]
        if one["cmd"] != other["cmd"]:
            yield name, f"another command: {one['cmd']} and {other['cmd']}"
        if one.get("params") != other.get("params"):
            yield name, "other settings (params.yaml)"
        deps = [{dep["path"]: dep["md5"] for dep in stage.get("deps", [])} for stage in (one, other)]
        changed = {path for path in deps[0].keys() | deps[1].keys() if deps[0].get(path) != deps[1].get(path)}
        if changed - made:
            yield name, f"other inputs: {', '.join(sorted(changed - made))}"


def explain(first: Path, second: Path) -> str:
    """How two versions of an output differ, in words."""
    if not first.exists() or not second.exists():
        return "the hashes differ; the files are not here to compare"
    if first.is_dir() and second.is_dir():
        names = sorted({p.relative_to(each).as_posix() for each in (first, second) for p in each.rglob("*")})
        pairs = [(name, first / name, second / name) for name in names]
        told = [f"{name} {explain_file(a, b)}" for name, a, b in pairs if a.is_file() or b.is_file() if not _same(a, b)]
        more = f"; and {len(told) - 5} more files" if len(told) > 5 else ""
        return "; ".join(told[:5]) + more if told else "the same files; another hash only"
    return explain_file(first, second)


def explain_file(first: Path, second: Path) -> str:
    """How two versions of a file differ, in words."""
    if not first.is_file() or not second.is_file():
        return f"is only in {(first if first.is_file() else second).parents[2].name}"
    if first.suffix == ".npy":
        return _arrays(np.load(first, allow_pickle=False), np.load(second, allow_pickle=False))
    if first.suffix == ".json":
        one, other = (flat(json.loads(path.read_text(encoding="utf-8"))) for path in (first, second))
        keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
        shown = ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in keys[:4])
        return f"differs in {shown}" + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
    if first.suffix == ".csv":
        tables = [list(csv.reader(path.open(encoding="utf-8", newline=""))) for path in (first, second)]
        lines = sum(a != b for a, b in zip(*tables, strict=False)) + abs(len(tables[0]) - len(tables[1]))
        return f"differs in {lines} of {len(tables[0])} lines"
    if first.suffix == ".png":
        return _arrays(*(np.asarray(Image.open(path).convert("RGB"), dtype=np.int16) for path in (first, second)))
    sizes = first.stat().st_size, second.stat().st_size
    return "differs" if sizes[0] == sizes[1] else f"differs: {sizes[0]} and {sizes[1]} bytes"


def flat(content: Any, above: str = "") -> dict[str, Any]:
    """The figures of a JSON file, nested ones named like a.b."""
    if not isinstance(content, dict):
        return {above: content}
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{above}.{name}" if above else name)
    return found


def _arrays(one: np.ndarray, other: np.ndarray) -> str:
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return f"is {one.dtype} {one.shape} and {other.dtype} {other.shape}"
    count = int((one != other).sum())
    if one.dtype.kind not in "fiu":
        return f"differs in {count} of {one.size} entries"
    difference = float(np.abs(one.astype(np.float64) - other).max(initial=0))
    scale = float(np.abs(one).max(initial=0)) or 1.0
    rounding = one.dtype.kind == "f" and difference < 1e-4 * scale
    what = "differs in the last bits" if rounding else "differs"
    return f"{what}: {count} of {one.size} values, by {difference:.3g} at most (values reach {scale:.3g})"


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def report(differences: list[Difference]) -> str:
    """A line an artifact, and where to look: at the first stage, since what follows it is made of its outputs."""
    first = next(each.stage for each in differences)
    where = WHERE_TO_LOOK.get(first, "what this stage reads that dvc.yaml does not name")
    lines = [*map(str, differences), f"Look first at {first}, since later stages are made of its outputs: {where}."]
    return "\n".join(lines)


def beyond(first: Path, second: Path, tolerance: float) -> list[str]:
    """The figures of metrics.json, a line each, that differ by more than the tolerance; counts must be equal."""
    one, other = (flat(json.loads((folder / METRICS).read_text(encoding="utf-8"))) for folder in (first, second))
    found = []
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name), other.get(name)
        near = isinstance(a, float) and isinstance(b, float | int) and abs(a - b) <= tolerance
        if a != b and not near:
            found.append(f"  {name}: {a} here, {b} committed")
    return found


def agree_with_committed(ran: Path, committed: Path, tolerance: float) -> bool:
    """Compare a run with the committed outputs, and print what is found."""
    differences = compare(ran, committed)
    if not differences:
        print("committed: the same, bit for bit")
        return True
    print(f"committed: {len(differences)} artifacts differ here ({cpu_name()}):\n{report(differences)}")
    off = beyond(ran, committed, tolerance)
    if off:
        print(f"committed: figures beyond the tolerance of {tolerance}:", *off, sep="\n")
        return False
    print(f"committed: every figure of {METRICS} is within {tolerance}")
    return True


def main() -> int:
    """Read the arguments, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="2, or 1 to compare with what is committed alone")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE,
                        help="by which a committed figure may differ, of 1 (default: %(default)s)")  # fmt: skip
    args = parser.parse_args()
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, check=True).stdout:
        print("what is not committed is left out", flush=True)
    with tempfile.TemporaryDirectory(prefix="reproduce", ignore_cleanup_errors=True) as name:
        folders = [Path(name, f"run-{number}") for number in range(1, args.runs + 1)]
        try:
            for folder in folders:
                run(folder)
        except subprocess.CalledProcessError as error:
            print(f"reproduce: error: {' '.join(error.cmd)} failed; the reason stands above", file=sys.stderr)
            return 2
        good = True
        for other in folders[1:]:
            differences = compare(folders[0], other)
            good &= not differences
            print("the runs agree, bit for bit" if not differences else f"the runs differ:\n{report(differences)}")
        committed = clone(Path(name, "committed"))
        # Features and index, to say how far they are from ours; without them their hashes are compared all the same.
        pull = ["dvc", "pull", "--quiet", "--allow-missing"]
        subprocess.run(pull, cwd=committed, env=environment(Path(name, "home")), capture_output=True, check=False)
        return int(not (agree_with_committed(folders[0], committed, args.tolerance) and good))


if __name__ == "__main__":
    sys.exit(main())
