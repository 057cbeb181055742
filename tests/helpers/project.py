"""A copy of the project to run DVC and stages in, and SIGKILLs for a stage."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from proof.patience import patience
from tests.helpers.warm import Warm

ROOT = Path(__file__).resolve().parents[2]
MEASURED = "COVERAGE_PROCESS_CONFIG"  # in the environment: coverage follows new processes, not copies of an old one
CACHE = {"LOOKALIKE_CACHE": ""}  # of the environment


@cache
def warm_process() -> Warm:
    """One for all tests of this process."""
    return Warm()


class Project:
    """A copy of the project in a Git repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        bin_folder = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "LOOKALIKE_CACHE": str(folder / ".git" / "cache"),
            "DVC_NO_ANALYTICS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",  # else threads of t-SNE that wait keep other processes waiting
            "GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@localhost",
            "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@localhost",
        }  # fmt: skip
        self._usual = dict(self.environment)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; `python`, `dvc` and `git` are found. DVC and stages are copied from `Warm`."""
        environment = self.environment
        usual = environment | CACHE == self._usual | CACHE  # an import may ask for anything else
        if usual and command[0] in ("dvc", "python") and MEASURED not in environment and hasattr(os, "pidfd_open"):
            environment = environment | warm_process().variables
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=patience(900),
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro`; returns the stages that ran."""
        output = self.run("dvc", "repro", *arguments).stdout
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]

    def set(self, **values: Any) -> None:
        """Change params.yaml; evaluate__k=[1] sets evaluate.k."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        for name, value in values.items():
            *parents, key = name.split("__")
            section = content
            for parent in parents:
                section = section[parent]
            section[key] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def commit(self, message: str = "x") -> None:
        """Commit everything that Git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)


def copy_project(target: Path, *, outputs: bool = False) -> Project:
    """Copy the files that Git tracks or would; without what the stages wrote, unless `outputs`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    written = ("dvc.lock", "metrics/", "plots/", "data/raw.json", "data/processed.json", "data/model.json",
               "data/features.json", "data/index.json", "storage/")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file() and (outputs or not name.startswith(written)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    project = Project(target)
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.commit("start")
    return project


def kept_rows(cache: Path) -> int:
    """Rows that a reader finds in the cache of embeddings."""
    total = 0
    for file in cache.glob("embeddings/*.sqlite"):
        with closing(sqlite3.connect(file)) as connection, suppress(sqlite3.OperationalError):  # still without tables
            total += connection.execute("SELECT count(*) FROM rows").fetchone()[0]
    return total


def killed_until_through(
    project: Project, command: tuple[str, ...], result: Path, rows: tuple[int, int], seed: int
) -> list[int]:
    """Start `extract`, SIGKILL it at a random moment, and again, until `result` is there.

    rows  a life may add this many to the cache, between these two, before it is killed.

    Returns how many rows the cache had after each kill.
    """
    draw, journal = random.Random(seed), []
    cache = Path(project.environment["LOOKALIKE_CACHE"])
    while not result.exists():  # a kill may come between the last write and the exit
        process = subprocess.Popen(
            command, cwd=project.folder, env=project.environment, stderr=subprocess.PIPE, text=True
        )
        enough = (journal[-1] if journal else 0) + draw.randrange(*rows)
        deadline = time.monotonic() + patience(300)
        while process.poll() is None and kept_rows(cache) < enough and time.monotonic() < deadline:
            time.sleep(draw.uniform(0, 0.02))
        time.sleep(draw.uniform(0, 0.3))
        if process.poll() is None:
            process.kill()
            process.wait()
            with (
                tempfile.TemporaryDirectory() as copy
            ):  # counting mends what the kill left, which is the next life's to do
                shutil.copytree(cache, copy, dirs_exist_ok=True)
                journal.append(kept_rows(Path(copy)))
        else:
            assert process.returncode == 0, process.stderr.read()
        process.communicate()
    return journal
