"""A scratch clone of the current commit, so small that a stage takes seconds, and what undisturbed runs made in it."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image

from lookalike.base.files import PARTIAL, file_digest, remove
from proof.patience import patience

ROOT = Path(__file__).resolve().parents[2]
STAGES = tuple(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
TIMED = "benchmark"  # the stage whose figures no two runs share
STATE = ("data", "metrics", "plots", "dvc.lock", "params.yaml", ".dvc/cache")  # what a run changes
CLASSES, PICTURES = 5, 8  # in the folder of JPEGs that is the data set
# Small, yet every stage does all that it does by default. `old` is what stood there before the run that is disturbed.
SMALL: dict[str, Any] = {
    "download": {"dataset": "folder", "folder": "photos", "limit_per_class": PICTURES},
    "preprocess": {"image_size": 32},
    "model": {"backbone": "MobileNetV2", "layer": "block_1_expand_relu"},
    "extract": {"runtime": "openvino", "batch_size": 8},
    "index": {"refine": {"pca": 16, "augment": 5, "expand": 5}},
    "evaluate": {"k": [1, 5], "resamples": 100, "split_seeds": 1, "examples": 2, "worst": 2},
    "benchmark": {"queries": 4, "repeats": 1},
}
OLD: dict[str, Any] = {"download": {"limit_per_class": PICTURES - 2}, "model": {"seed": 1}}

# What DVC says of its own files where a kill left half of one, and the file.
HALF_WRITTEN = {"Unable to read RWLock-file": ".dvc/tmp/rwlock", "dvc.lock'": "dvc.lock"}

Digests = dict[str, str]  # path in the copy: SHA-256


@dataclass(frozen=True)
class Entry:
    """A stage: its command, word by word, and the paths that it reads and writes."""

    command: list[str]
    deps: list[str]
    outs: list[str]


@dataclass(frozen=True)
class Sandbox:
    """A folder with a clone of the project (`work`), its caches, and the states that it can be put into."""

    folder: Path

    @property
    def work(self) -> Path:
        """The clone."""
        return self.folder / "work"

    @property
    def cache(self) -> Path:
        """What the clone's runs use as the user's cache."""
        return self.folder / "cache"

    def state(self, name: str) -> Path:
        """The folder of a kept state: "new", the undisturbed run's, or "old", an earlier run's with other settings."""
        return self.folder / "states" / name

    @cached_property
    def environment(self) -> dict[str, str]:
        """Of every command: this interpreter first, caches in the sandbox, nothing reported to anyone."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "LOOKALIKE_CACHE": str(self.cache),
            "DVC_SITE_CACHE_DIR": str(self.folder / "site"),
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; whatever the exit status."""
        return subprocess.run(
            command, cwd=self.work, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=patience(1800),
        )  # fmt: skip

    @cached_property
    def stages(self) -> dict[str, Entry]:
        """The stages of dvc.yaml, in the order in which they run, with what DVC made of the templates there."""
        lock = yaml.safe_load((self.state("new") / "dvc.lock").read_text())["stages"]
        return {
            name: Entry(
                lock[name]["cmd"].split(), *([each["path"] for each in lock[name][key]] for key in ("deps", "outs"))
            )
            for name in STAGES
        }

    def restore(self, name: str) -> None:
        """Put the clone into a kept state; the cache of embeddings is empty afterwards."""
        for path in STATE:
            remove(self.work / path)
            copy(self.state(name) / path, self.work / path)
        for left in self.partials():
            remove(self.work / left)
        remove(self.cache)

    def start(self, stage: str, stale: bool) -> None:
        """Everything as the undisturbed run left it, but `stage` has not run.

        stale  its outputs are those of the old run, which settings no longer agree with; else there are none.
        """
        self.restore("new")
        new, old = (yaml.safe_load((self.state(name) / "dvc.lock").read_text()) for name in ("new", "old"))
        for path in self.stages[stage].outs:
            remove(self.work / path)
            if stale:
                copy(self.state("old") / path, self.work / path)
        others = [entry for name, entry in new["stages"].items() if name != stage]
        for digest in self._objects([new["stages"][stage]]) - self._objects([*others, *old["stages"].values()]):
            remove(self.work / ".dvc/cache/files/md5" / digest[:2] / digest[2:])  # as if DVC had never kept them
        new["stages"].pop(stage)
        if stale:
            new["stages"][stage] = old["stages"][stage]
        (self.work / "dvc.lock").write_text(yaml.safe_dump(new, sort_keys=False))

    def _objects(self, entries: list[dict[str, Any]]) -> set[str]:
        """Names of the objects in DVC's cache that entries of dvc.lock name, directly or by a folder."""
        found = {out["md5"] for entry in entries for out in entry["outs"]}
        for digest in [digest for digest in found if digest.endswith(".dir")]:
            path = self.state("new") / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
            if path.exists():
                found |= {file["md5"] for file in json.loads(path.read_text())}
        return found

    def digests(self, *stages: str, state: str = "") -> Digests:
        """What stages wrote (all, if none is named), file by file, in the clone or in a kept state."""
        root = self.state(state) if state else self.work
        found: Digests = {}
        for stage in stages or self.stages:
            for out in self.stages[stage].outs:
                for path in sorted([root / out, *(root / out).rglob("*")]):
                    if path.is_file():
                        name = path.relative_to(root).as_posix()
                        found[name] = timeless(path) if stage == TIMED else file_digest(path)
        return found

    def differences(self) -> list[str]:
        """Artifacts that are not, bit for bit, the undisturbed run's, and stages whose entry in dvc.lock is not."""
        here, there = self.digests(), self.digests(state="new")
        found = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
        locks = [lock_entries(path / "dvc.lock") for path in (self.work, self.state("new"))]
        return found + [f"dvc.lock: {name}" for name in locks[1] if locks[0].get(name) != locks[1][name]]

    def partials(self) -> list[str]:
        """Unfinished files and folders that lie in the clone and its cache."""
        found: list[str] = []
        for folder, folders, files in os.walk(self.folder):
            here = [name for name in folders + files if name.endswith(PARTIAL)]
            found += [os.path.relpath(os.path.join(folder, name), self.work) for name in here]  # noqa: PTH118
            folders[:] = [name for name in folders if name not in (".git", "states") and name not in here]
        return sorted(found)

    def processes(self) -> list[str]:
        """Command lines of processes that still run in the clone, and do not end by themselves."""
        deadline = time.monotonic() + patience(60)
        while found := _running_in(self.work):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return found

    def repair(self) -> tuple[str, str]:
        """`dvc repro`; returns what is wrong afterwards, "" if all is as in the undisturbed run, and the help it took.

        DVC writes two files of its own over themselves. Where a kill left half of one, it says so and stops until
        somebody deletes that file, which is then done here.
        """
        done, helped = self.run("dvc", "repro"), ""
        for said, path in HALF_WRITTEN.items():
            if done.returncode and said in done.stderr:
                helped = f"rm {path}"
                remove(self.work / path)
                done = self.run("dvc", "repro")
        if done.returncode:
            return f"dvc repro exits {done.returncode}: {tail(done)}", helped
        if wrong := self.differences():
            return f"differ: {', '.join(wrong[:5])}", helped
        if left := self.partials():
            return f"left behind: {', '.join(left[:5])}", helped
        return "", helped

    def copy(self, folder: Path) -> "Sandbox":
        """Another sandbox like this one."""
        ignore = shutil.ignore_patterns("tools")  # a pipe is in it
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        return Sandbox(folder)


def make(folder: Path, *stages: str) -> Sandbox:
    """Clone the current commit, and run it undisturbed with old settings, then with new ones.

    stages  up to which it is run with old settings: those that are to be disturbed; all, if none is named.
    """
    sandbox = Sandbox(folder)
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", sandbox.work], check=True)
    draw_pictures(sandbox.work / "photos")
    defaults = yaml.safe_load((sandbox.work / "params.yaml").read_text())
    small = merged(defaults, SMALL)
    for name, changes in {"old": OLD, "new": {}}.items():
        (sandbox.work / "params.yaml").write_text(yaml.safe_dump(merged(small, changes), sort_keys=False))
        done = sandbox.run("dvc", "repro", *(stages if name == "old" else ()))
        if done.returncode:
            raise RuntimeError(f"the undisturbed run exits {done.returncode}: {tail(done)}")
        for path in STATE:
            copy(sandbox.work / path, sandbox.state(name) / path)
    return sandbox


def draw_pictures(folder: Path) -> None:
    """Write smooth JPEGs, `PICTURES` in each of `CLASSES` folders; those of a class share their coarse half."""
    for number in range(CLASSES * PICTURES):
        label, draw = f"class{number % CLASSES}", np.random.default_rng(number)
        coarse = np.random.default_rng(number % CLASSES).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        coarse[::2] = draw.integers(0, 256, (2, 5, 3), dtype=np.uint8)
        (folder / label).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)
        picture.save(folder / label / f"{number:03d}.jpg", quality=90)


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`one` with the values of `other`, section by section."""
    return one | {
        key: merged(one[key], value) if isinstance(value, dict) else value for key, value in other.items()
    }  # fmt: skip


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, times included, if it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.exists():
        shutil.copy2(source, target)


def timeless(path: Path) -> str:
    """Digest of what two runs of benchmark share: all but milliseconds, and of the picture that there is one."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if not key.endswith(("_ms", "_p50"))}
        return [without(item) for item in value] if isinstance(value, list) else value

    if path.suffix == ".json":
        try:
            content = json.dumps(without(json.loads(path.read_text())))
        except ValueError:  # damaged
            content = path.read_text(errors="replace")
    elif path.suffix == ".csv":
        shared = ("percentile", "method", "effort", "recall")
        rows = csv.DictReader(path.read_text().splitlines())
        content = json.dumps([{key: row[key] for key in shared if key in row} for row in rows])
    else:
        content = str(path.stat().st_size > 0)
    return hashlib.sha256(content.encode()).hexdigest()


def lock_entries(path: Path) -> dict[str, Any]:
    """The stages of a dvc.lock, without the hashes of what benchmark wrote."""
    stages: dict[str, Any] = yaml.safe_load(path.read_text())["stages"]
    return {name: {**entry, "outs": None} if name == TIMED else entry for name, entry in stages.items()}


def tail(done: subprocess.CompletedProcess[str]) -> str:
    """The last lines that a command said, as one."""
    return " | ".join((done.stdout + done.stderr).strip().splitlines()[-6:])


def _running_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue  # it ended, or is another user's
    return found
