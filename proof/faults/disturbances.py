"""Faults other than kills: what a stage says when it meets one, and what the next `dvc repro` makes of it."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lookalike.base.errors import LookalikeError
from proof.faults.sandbox import Sandbox, copy, tail
from proof.patience import patience

PAGE = 4096  # bytes; of a tmpfs
SPARE = 64 << 20  # bytes that a small disk is larger than what lies on it, before ballast takes them
YEAR = 365 * 86_400  # seconds
CUT = ("data/raw", "data/processed", "data/model", "data/features", "data/index")  # inputs that are cut off


@dataclass(frozen=True)
class Outcome:
    """One fault: what was said at once, and what is wrong after the next `dvc repro`; "" if nothing."""

    fault: str
    stage: str
    case: str
    said: str
    wrong: str
    helped: str


Tell = Callable[[Outcome], None]


def in_a_namespace() -> None:
    """Start this program anew where it may mount, unless that has been done.

    Raises LookalikeError where the system does not permit it.
    """
    if os.environ.get("FAULTS_NAMESPACE") == str(os.getpid()):
        return
    unshare = ["unshare", "--map-root-user", "--mount"]
    probe = [*unshare, "mount", "-t", "tmpfs", "none", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, check=False, capture_output=True).returncode:
        raise LookalikeError("file systems cannot be mounted here, not even in a namespace of one's own; run as root, "
                             "or leave out --fault full-disk and read-only")  # fmt: skip
    script = 'FAULTS_NAMESPACE=$$ exec "$@"'
    os.execvp("unshare", [*unshare, "sh", "-c", script, "sh", sys.executable, *sys.argv])  # noqa: S606


@contextmanager
def mounted(folder: Path, *commands: str) -> Iterator[None]:
    """Mount something on a folder, by `mount` and each of `commands`' arguments, for the time of the block."""
    for command in commands:
        subprocess.run(["mount", *command.split(), folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def alone(sandbox: Sandbox, stage: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a stage as DVC would."""
    return sandbox.run(*sandbox.stages[stage].command, **environment)


def verdict(done: subprocess.CompletedProcess[str], stage: str) -> tuple[str, str]:
    """The one line with which a stage refused, and ""; or "", and what it did instead."""
    lines = re.findall(rf"^{stage}: error: .*", done.stderr, re.MULTILINE)
    if done.returncode != 1 or len(lines) != 1 or "Traceback" in done.stderr:
        return "", f"exits {done.returncode}, not with one line: {tail(done)}"
    return str(lines[0]), ""


def after(sandbox: Sandbox, wrong: str) -> tuple[str, str]:
    """Run `dvc repro`; returns what is wrong, with what was before, and the help it took."""
    also, helped = sandbox.repair()
    return "; ".join(line for line in (wrong, also) if line), helped


def full_disk(sandbox: Sandbox, stage: str, tell: Tell) -> None:
    """Run a stage on a disk with no room, and with a third, two thirds and nearly all of the room that it takes."""
    disk = sandbox.folder / "disk"
    disk.mkdir(exist_ok=True)
    size = sum(path.lstat().st_size + PAGE for path in sandbox.folder.rglob("*")) + SPARE
    with mounted(disk, f"-t tmpfs -o size={size} none"):
        small = Sandbox(disk)
        for path in sandbox.folder.iterdir():
            if path != disk:
                copy(path, disk / path.name)
        for part in (0, 1 / 3, 2 / 3, 0.95):
            small.start(stage, stale=True)
            sizes = [(small.state("new") / name).stat().st_size for name in small.digests(stage, state="new")]
            need = sum(-(-size // PAGE) * PAGE for size in sizes)
            fill(disk, int(need * part))
            done = alone(small, stage)
            (disk / "ballast").unlink()
            said, wrong = ("", "") if done.returncode == 0 else verdict(done, stage)
            if done.returncode == 0 and small.digests(stage) != small.digests(stage, state="new"):
                wrong = "exits 0 with other artifacts"
            tell(Outcome("full-disk", stage, f"room for {part:.0%}", said, *after(small, wrong)))


def fill(disk: Path, room: int) -> None:
    """Write a file that leaves so many bytes on a disk, rounded down to pages."""
    block = bytes(1 << 20)
    with (disk / "ballast").open("wb", buffering=0) as file:
        status = os.statvfs(disk)
        rest = status.f_bavail * status.f_frsize - room // PAGE * PAGE
        while rest > 0:
            rest -= file.write(block[: min(rest, len(block))])


def read_only(sandbox: Sandbox, stage: str, tell: Tell) -> None:
    """Run a stage where nothing may be written, and one that writes into `metrics` also where only that may not be."""
    folders = dict.fromkeys(
        [sandbox.work, *(sandbox.work / out for out in sandbox.stages[stage].outs if out[:3] == "met")]
    )
    for folder in [folder if folder.is_dir() else folder.parent for folder in folders]:
        sandbox.start(stage, stale=True)
        with mounted(folder, f"--bind {folder}", "-o remount,bind,ro"):
            done = alone(sandbox, stage)
        said, wrong = verdict(done, stage)
        where = folder.relative_to(sandbox.work).as_posix()
        tell(Outcome("read-only", stage, "everything" if where == "." else where, said, *after(sandbox, wrong)))


def truncated(sandbox: Sandbox, stage: str, tell: Tell) -> None:
    """Cut each file that a stage is the first to read, in turn, at a random place, and run the stage."""
    before = {dep for name in earlier(sandbox, stage) for dep in sandbox.stages[name].deps}
    inputs = [dep for dep in sandbox.stages[stage].deps if dep in CUT and dep not in before]
    for name in [path for dep in inputs for path in files_below(sandbox, dep)]:
        sandbox.restore("new")
        path, draw = sandbox.work / name, random.Random(name)  # noqa: S311
        size = path.stat().st_size
        cut = draw.randrange(size)
        os.truncate(path, cut)
        done = alone(sandbox, stage)
        said, wrong = verdict(done, stage)
        if done.returncode == 0:
            same = sandbox.digests(stage) == sandbox.digests(stage, state="new")
            said, wrong = "does not matter to it" if same else "goes on with what it finds", ""
        tell(Outcome("truncated", stage, f"{name} after {cut} of {size} bytes", said, *after(sandbox, wrong)))


def earlier(sandbox: Sandbox, stage: str) -> list[str]:
    """The stages before one in dvc.yaml."""
    names = list(sandbox.stages)
    return names[: names.index(stage)]


def files_below(sandbox: Sandbox, dep: str) -> list[str]:
    """The files of an input, one only of those in subfolders, which are all alike."""
    paths = [path.relative_to(sandbox.state("new")) for path in sorted((sandbox.state("new") / dep).rglob("*.*"))]
    flat = [path for path in paths if path.parent == Path(dep)]
    return [path.as_posix() for path in flat + [path for path in paths if path.parent != Path(dep)][:1]]


CLOCK = """
import atexit, json, os, sys, time
shift = json.loads(os.environ["FAULTS_CLOCK"]).get(os.path.basename((sys.orig_argv + [""] * 2)[1]).removesuffix(".py"))
if shift is not None:
    real, real_ns, began = time.time, time.time_ns, time.time_ns()
    time.time = lambda: real() + shift
    time.time_ns = lambda: real_ns() + shift * 10**9

    def stamp():
        for top in ("data", "metrics", "plots"):
            for folder, _, files in os.walk(top):
                for path in [os.path.join(folder, name) for name in files]:
                    if os.stat(path).st_mtime_ns >= began:
                        os.utime(path, (real() + shift,) * 2)

    atexit.register(stamp)
"""  # Python calls it at its start, in DVC and in stages; what a stage wrote bears the time that its clock showed


def clock(sandbox: Sandbox, stage: str, tell: Tell) -> None:
    """Run DVC and a stage while the clock is years ahead, then years behind, then change an output unseen."""
    shim = sandbox.folder / "clock"
    shim.mkdir(exist_ok=True)
    (shim / "sitecustomize.py").write_text(CLOCK)
    for years in (10, -20):
        sandbox.start(stage, stale=True)
        shifts = json.dumps({stage: years * YEAR, "dvc": years * YEAR})
        done = sandbox.run("dvc", "repro", stage, PYTHONPATH=str(shim), FAULTS_CLOCK=shifts)
        written = max((sandbox.work / name).stat().st_mtime for name in sandbox.digests(stage))
        wrong = sandbox.differences()
        if done.returncode or abs(written - time.time() - years * YEAR) > 3600:
            wrong.append(f"dvc repro exits {done.returncode}, artifacts of {time.ctime(written)}: {tail(done)}")
        path = sandbox.work / next(iter(sandbox.digests(stage)))
        content, status = path.read_bytes(), path.stat()
        other = path.with_name(f"{path.name}.other")  # beside the old file, or it might be given that one's inode
        other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        if "changed outs" not in sandbox.run("dvc", "status", stage).stdout:
            wrong.append(f"dvc status does not notice another {path.name} of the same size and time")
        tell(Outcome("clock", stage, f"{years:+d} years", "", *after(sandbox, "; ".join(wrong))))


def two_at_once(sandbox: Sandbox, stage: str, tell: Tell) -> None:
    """Start `dvc repro` twice, at the same moment and a little apart."""
    for apart in (0, 0.5, 1.5):  # seconds
        sandbox.start(stage, stale=True)
        runs = []
        for number in range(2):
            time.sleep(apart * number)
            runs.append(subprocess.Popen(["dvc", "repro"], cwd=sandbox.work, env=sandbox.environment, text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT))  # fmt: skip
        said, wrong = [], ""
        for run in runs:
            output = run.communicate(timeout=patience(1800))[0]
            errors = [line for line in output.splitlines() if line.startswith("ERROR")]
            said.append("done" if run.returncode == 0 else " ".join(errors) or output[-200:])
            if "Traceback" in output:
                wrong = f"a traceback: {output[-300:]}"
        if "done" not in said:
            wrong = wrong or "neither run came through"
        tell(Outcome("two-at-once", stage, f"{apart} s apart", " / ".join(said), *after(sandbox, wrong)))
