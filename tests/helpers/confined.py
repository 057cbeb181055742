"""A place where a stage has what it declares and nothing else.

It finds there its dependencies and its sections of params.yaml; an empty home and an empty folder for temporary
files; no network, by a namespace of the kernel's where one is to be had, and always by an audit hook that Python asks
before it opens a connection or a file. What it then writes, anywhere, is seen.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from lookalike.base.files import file_digest
from proof.effects.graph import Stage
from proof.patience import patience

# Of the environment: what says where to read and write; a tool that measures the tests writes beside what it measures.
NOT_KEPT = ("LOOKALIKE_", "XDG_", "KERAS_", "COVERAGE_")
NO_NETWORK = ("unshare", "--map-root-user", "--net")
# Asked by Python for every file and every connection. What it refuses it also notes, so that no `except` hides it.
HOOK = """
import json, os, sys

BASE, CHECKOUT, PREFIX = {base!r}, {checkout!r}, sys.prefix
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FREE = (BASE, "/dev/", "/proc/")

def note(kind, what):
    log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, (json.dumps([kind, str(what)]) + chr(10)).encode())
    os.close(log)

def hook(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        note("network", f"{{event}} {{args[0]}}")
        raise OSError(f"no network here: {{event}}")
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and args[0].family.name.startswith("AF_INET"):
        note("network", f"{{event}} {{args[1]}}")
        raise OSError(f"no network here: {{event}}")
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(args[0]))
        if path == {log!r}:
            return
        if args[2] & WRITES and not path.startswith(FREE):
            note("write", path)
        elif path.startswith(CHECKOUT) and not path.startswith((PREFIX, BASE)):
            note("read", path)
    if event in ("os.mkdir", "os.rename", "os.link", "os.symlink"):
        path = os.path.abspath(os.fsdecode(args[0] if event == "os.mkdir" else args[1]))
        if not path.startswith(FREE):
            note("write", path)

sys.addaudithook(hook)
"""


@lru_cache
def network_prefix() -> tuple[str, ...]:
    """What cuts a command off the network by a namespace; () where the kernel or a container forbids it."""
    try:
        allowed = subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return NO_NETWORK if allowed else ()


@dataclass(frozen=True)
class Ran:
    """What a stage did in its sandbox."""

    status: int
    stderr: str
    wrote: frozenset[str]  # in the project: files that are new, changed or gone; a folder ends in /
    home: frozenset[str]  # in the user's home
    temporary: frozenset[str]  # left among the temporary files
    refused: tuple[tuple[str, str], ...]  # (network, read or write; what): what the audit hook noted

    def undeclared(self, stage: Stage) -> set[str]:
        """What it wrote in the project and no `outs` names."""
        return {path for path in self.wrote if not _belongs(path, stage.outs)}

    def missing(self, stage: Stage) -> set[str]:
        """The `outs` that it did not write."""
        return {out for out in stage.outs if not any(_belongs(path, frozenset([out])) for path in self.wrote)}


def _belongs(path: str, outs: frozenset[str]) -> bool:
    """An out itself, something in it, or a folder that an out lies in."""
    return any(path.rstrip("/") == out or path.startswith(f"{out}/") for out in outs) or (
        path.endswith("/") and any(out.startswith(path) for out in outs)
    )


def run(stage: Stage, source: Path, base: Path) -> Ran:
    """Run a stage in the new folder `base`, which gets copies of what it declares from the project `source`.

    Returns what happened; the project that the stage saw is base/project.
    """
    project, home, temporary, hook = (base / name for name in ("project", "home", "tmp", "hook"))
    for folder in (project / stage.folder, home, temporary, hook):
        folder.mkdir(parents=True)
    for dep in sorted(stage.deps):
        target = project / dep
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / dep).is_dir():
            shutil.copytree(source / dep, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / dep, target)
    params = yaml.safe_load((source / "params.yaml").read_text(encoding="utf-8"))
    declared = {name: values for name, values in params.items() if name in stage.sections}
    (project / "params.yaml").write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    log = base / "refused.jsonl"
    checkout = f"{Path(__file__).resolve().parents[2]}/"
    text = HOOK.format(base=f"{base.resolve()}/", checkout=checkout, log=str(log.resolve()))
    (hook / "sitecustomize.py").write_text(text, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_KEPT)}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(hook), "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # as in conftest.py
    }  # fmt: skip
    before = tree(project)
    done = subprocess.run(
        [*network_prefix(), "sh", "-c", stage.command],
        cwd=project / stage.folder, env=environment, capture_output=True, text=True, check=False, timeout=patience(600),
    )  # fmt: skip
    after = tree(project)
    notes = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Ran(
        done.returncode,
        done.stderr,
        frozenset(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)),
        frozenset(tree(home)),
        frozenset(tree(temporary)),
        tuple(dict.fromkeys((kind, what) for kind, what in map(json.loads, notes))),
    )


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, and every folder, its name ending in /."""
    return {
        path.relative_to(folder).as_posix() + "/" * path.is_dir(): "" if path.is_dir() else file_digest(path)
        for path in folder.rglob("*")
    }
