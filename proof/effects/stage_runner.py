"""Stages, run on a small data set under many settings: what went in decides whether one runs again, as it does for DVC.

Importing what they need takes 6 s, longer than these stages do, so a process imports it once, and is copied for each
(multiprocessing's forkserver).
"""

import hashlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import yaml

from lookalike.base.files import file_digest, remove
from proof.effects.graph import Stage, default_stages, stages

Params = dict[str, Any]
GIVEN = "small"  # in a stage's working folder: what stands for a user's files
WARM = [
    "lookalike.networks.backbones", "lookalike.networks.openvino_setup", "lookalike.runtimes.tensorflow",
    "lookalike.extraction.extractor", "lookalike.datasets", "lookalike.evaluation.measure",
    "lookalike.report.diagnostics", "lookalike.report.page", "lookalike.index.searcher",
    "lookalike.finetuning.finetune",
    "scipy.linalg", "sklearn.datasets", "sklearn.feature_extraction.text", "sklearn.manifold",
    "proof.effects.graph", "proof.effects.trials",  # what a process of ours imports anyway
    "proof.effects.frozen",  # last
]  # fmt: skip
_CONTEXT = multiprocessing.get_context("forkserver")


class StageFailedError(Exception):
    """A stage did not end well; says which, where its settings are, and its last line."""


@dataclass(frozen=True)
class Ran:
    """One run of a stage: where its outputs lie, what went in, and a digest of each output."""

    folder: Path
    inputs: str
    outs: dict[str, str]


@dataclass(frozen=True)
class Turn:
    """A stage's place in a run of the graph: what goes in, and what came of it, run when it is first asked for."""

    inputs: str
    ran: Callable[[], Ran]


@dataclass
class Bench:
    """Runs stages of the project `root` in folders below `folder`; folder/small is a user's files, for all of them.

    What ran there in an earlier call is used again, unless the code that it ran has changed.
    """

    root: Path
    folder: Path
    warm: list[str] = field(default_factory=lambda: WARM)
    _runs: dict[str, Future[Ran]] = field(default_factory=dict)
    _graphs: dict[str, dict[str, Stage]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _children: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Begin to import."""
        _CONTEXT.set_forkserver_preload(self.warm)
        before = dict(os.environ)
        # It knows no other way to this project (python/cpython#117378).
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self.root), before.get("PYTHONPATH")]))
        os.environ["OMP_NUM_THREADS"] = "1"  # two that wait for each other on a busy machine take minutes for t-SNE
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def run(self, params: Params, given: dict[str, str] | None = None, only: tuple[str, ...] = ()) -> dict[str, Turn]:
        """Run the graph with these settings, each stage unless it ran before with the same settings and inputs.

        A stage that no other needs waits until it is asked for.

        given  outputs that are not made but lie in the user's files: name of the output, name there.
        only   the stages that are run, if not all.

        Safe to call from several threads. Raises StageFailedError.
        """
        turns: dict[str, Turn] = {}
        where: dict[str, tuple[Path, str]] = {}  # of every input: where it lies, its digest
        for name, file in (given or {}).items():
            where[name] = (self.folder / GIVEN / file, digest(self.folder / GIVEN / file))
        graph = self._graph(params)
        needed = frozenset().union(*(stage.deps for stage in graph.values()))
        for stage in graph.values():
            if only and stage.name not in only:
                continue
            for dep in stage.deps - where.keys():
                if dep.startswith(f"{GIVEN}/"):
                    where[dep] = (self.folder / dep, digest(self.folder / dep))
                else:  # code is the same in every run, and what _run compares
                    where[dep] = (self.root / dep, "")
            inputs = {dep: where[dep][1] for dep in sorted(stage.deps)}
            settings = {section: params[section] for section in sorted(stage.sections)}
            key = hashlib.sha256(json.dumps([stage.name, stage.command, settings, inputs]).encode()).hexdigest()
            links = {dep: where[dep][0] for dep in inputs if where[dep][1]}
            run = partial(self._once, key, partial(self._run, stage, key, params, links))
            turns[stage.name] = Turn(key, run)
            if stage.outs & needed:
                made = run()
                where |= {out: (made.folder / out, came) for out, came in made.outs.items()}
        return turns

    def process(self, function: Callable[..., None], *arguments: object) -> int:
        """Run a function in a warm process of its own; returns the exit status."""
        process = _CONTEXT.Process(target=function, args=arguments)
        # multiprocessing looks after every child whenever one is started, and how a child ended can be read once: two
        # threads that read it at the same time take 255 for the status.
        with self._children:
            process.start()
        wait([process.sentinel])
        with self._children:
            process.join()
        return process.exitcode or 0

    def _once(self, key: str, run: Callable[[], Ran]) -> Ran:
        with self._lock:
            ours = key not in self._runs
            future = self._runs.setdefault(key, Future())
        if ours:
            try:
                future.set_result(run())
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _run(self, stage: Stage, key: str, params: Params, links: dict[str, Path]) -> Ran:
        folder = self.folder / "runs" / f"{stage.name}-{key[:16]}"
        code = digests(tuple(self.root / dep for dep in sorted(stage.deps - links.keys())))
        done = folder / "done"
        if done.exists() and done.read_text(encoding="utf-8") == code:  # in an earlier call, with the same code
            return Ran(folder, key, {out: digest(folder / out) for out in sorted(stage.outs)})
        if self._try(stage, params, links, folder):
            last = (folder / "log").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise StageFailedError(f"{stage.name} failed ({folder}/params.yaml): {' '.join(last)}")
        done.write_text(code, encoding="utf-8")
        return Ran(folder, key, {out: digest(folder / out) for out in sorted(stage.outs)})

    def _try(self, stage: Stage, params: Params, links: dict[str, Path], folder: Path) -> int:
        """Run a stage in an empty folder; returns the exit status."""
        remove(folder)
        (folder / stage.folder).mkdir(parents=True)
        (folder / GIVEN).symlink_to(self.folder / GIVEN)
        for dep, path in links.items():
            if not dep.startswith(f"{GIVEN}/"):
                (folder / dep).parent.mkdir(parents=True, exist_ok=True)
                (folder / dep).symlink_to(path)
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        command = [str(self.root / stage.script), *shlex.split(stage.command)[2:]]
        return self.process(_main, command, folder / stage.folder, folder / "log")

    def _graph(self, params: Params) -> dict[str, Stage]:
        """The stages that these settings need, as DVC sees them."""
        files = [path for path in self.root.glob("stages/*/dvc.yaml") if path.is_file()] + [self.root / "dvc.yaml"]
        texts = {path.relative_to(self.root).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}
        named = sorted({name for text in texts.values() for name in re.findall(r"\$\{([\w.]+)\}", text)} - {"item"})
        values = json.dumps([look_up(params, name) for name in named])
        with self._lock:
            if values not in self._graphs:
                with TemporaryDirectory() as name:
                    folder = Path(name)
                    (folder / ".dvc").mkdir()
                    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
                    for file, text in (texts | {"params.yaml": yaml.safe_dump(params, sort_keys=False)}).items():
                        (folder / file).parent.mkdir(parents=True, exist_ok=True)
                        (folder / file).write_text(text, encoding="utf-8")
                    self._graphs[values] = default_stages(stages(folder))
            return self._graphs[values]


def _main(command: list[str], folder: Path, log: Path) -> None:
    """Be a stage: the process that calls this ends with it."""
    os.chdir(folder)
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ["LOOKALIKE_CACHE"] = str(log.parent / "cache")  # nothing is found that was not made in this run
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def look_up(params: Params, name: str) -> Any:
    """The value of index.refine.pca, say."""
    value: Any = params
    for part in name.split("."):
        value = value[part]
    return value


def changed(params: Params, values: dict[str, Any]) -> Params:
    """A copy of the settings with some values replaced, each named like index.refine.pca."""
    result: Params = json.loads(json.dumps(params))
    for name, value in values.items():
        *parents, last = name.split(".")
        look_up(result, ".".join(parents))[last] = value
    return result


@cache
def digests(paths: tuple[Path, ...]) -> str:
    """One digest of files and folders that do not change while this process lives."""
    return hashlib.sha256("".join(map(digest, paths)).encode()).hexdigest()


def digest(path: Path) -> str:
    """Hex SHA-256 of a file, or of names and contents of all files below a folder."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    lines = "".join(f"{file.relative_to(path).as_posix()} {file_digest(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
