"""Disturb every stage, run `dvc repro` after it, and compare every artifact with an undisturbed run's, bit for bit.

    python proof/faults/run.py --kills 20 --jobs 2                       all: by estimate 25 minutes of processor time
    python proof/faults/run.py --fault kill --kills 4 --stage extract    four SIGKILLs of one stage
    python proof/faults/run.py --fault full-disk --fault read-only --json faults.json

kill         SIGKILL at chosen points of the writing, at most a quarter of them before the first byte of an output; in
             turn of the stage alone and of DVC with all that it started, over old outputs and over none. `dvc` among
             the stages stands for DVC itself, killed while it keeps and locks what index wrote.
full-disk    No room on the disk, a third, two thirds and nearly all of what the stage writes.
read-only    Nothing may be written; and, of evaluate and benchmark, nothing into the folder metrics alone.
truncated    Every file that the stage is the first to read, cut at a random place.
clock        Years ahead and behind; and an output changed behind the back of its size and time.
two-at-once  `dvc repro` twice, together and a little apart.

Runs in a scratch clone of the current commit, with 40 small JPEGs and a part of MobileNetV2 with random weights. After
each fault `dvc repro` must exit 0, every artifact and every entry of dvc.lock must be the undisturbed run's (of
benchmark, all but its timings), and nothing unfinished and no process may be left. A kill is no power cut: what a disk
had not yet written when the power went is not tried. Needs strace for kills, and mount namespaces (Linux) for full-disk
and read-only. Exits 1 if anything is wrong.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's library, whatever is installed

from lookalike.base import script
from proof.faults import disturbances, kills
from proof.faults.sandbox import STAGES, Sandbox, make

KILL = "kill"
OTHERS: dict[str, Callable[[Sandbox, str, disturbances.Tell], None]] = {
    "full-disk": disturbances.full_disk,
    "read-only": disturbances.read_only,
    "truncated": disturbances.truncated,
    "clock": disturbances.clock,
    "two-at-once": disturbances.two_at_once,
}


def main() -> None:
    """Read the arguments, make a sandbox, and disturb copies of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", action="append", choices=[KILL, *OTHERS], help="only this; may be given again")
    parser.add_argument("--stage", action="append", choices=[*STAGES, kills.DVC], help="only this; may be given again")
    parser.add_argument("--kills", type=int, default=20, help="of each stage (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="stages at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kill and every outcome there")
    parser.add_argument("--folder", type=Path, help="where to put the scratch copies (default: the system's)")
    args = parser.parse_args()
    faults, stages = args.fault or [KILL, *OTHERS], args.stage or [*STAGES, kills.DVC]
    if args.kills < 1 or args.jobs < 1:
        parser.error("--kills and --jobs are 1 or more")
    if KILL in faults:
        kills.check_tools()
    if {"full-disk", "read-only"} & set(faults):
        disturbances.in_a_namespace()
    began, found = time.monotonic(), Found(args.json)
    with tempfile.TemporaryDirectory(prefix="faults-", dir=args.folder) as name:
        sandbox = make(
            Path(name) / "made", *(kills.DVC_STAGE if each == kills.DVC else each for each in args.stage or ())
        )
        print(f"undisturbed runs made in {time.monotonic() - began:.0f} s", file=sys.stderr)

        def disturb(task: tuple[str, str]) -> None:
            fault, disturbed = task
            copy = sandbox.copy(Path(name) / f"{fault}-{disturbed}")
            if fault == KILL:
                kills.kills(copy, disturbed, args.kills, found.add)
            else:
                OTHERS[fault](copy, disturbed, found.add)
            shutil.rmtree(copy.folder)

        tasks = [(fault, each) for fault in faults for each in stages if fault == KILL or each != kills.DVC]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(disturb, tasks))
    found.report(time.monotonic() - began)
    if found.wrong():
        sys.exit(1)


class Found:
    """What was found until now; kept in a file as it comes, if one was asked for."""

    def __init__(self, file: Path | None) -> None:
        self.kills: list[kills.Kill] = []
        self.outcomes: list[disturbances.Outcome] = []
        self._file, self._lock = file, threading.Lock()

    def add(self, result: kills.Kill | disturbances.Outcome) -> None:
        """Take one result, and tell on stderr."""
        with self._lock:
            if isinstance(result, kills.Kill):
                self.kills.append(result)
                told = f"kill: {result.stage}, {result.victim}: {result.phase}"
            else:
                self.outcomes.append(result)
                told = f"{result.fault}: {result.stage}: {result.case}"
            wrong = kills.trouble(result) if isinstance(result, kills.Kill) else result.wrong
            print(f"{told}: {wrong or 'mended'}", file=sys.stderr, flush=True)
            if self._file:
                self._file.write_text(json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n")

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kills": {name: kills.summary(killed) for name, killed in self.by_stage().items()},
            "others": [asdict(outcome) for outcome in self.outcomes],
        }

    def by_stage(self) -> dict[str, list[kills.Kill]]:
        """The kills of each stage."""
        groups = {name: [kill for kill in self.kills if kill.stage == name] for name in [*STAGES, kills.DVC]}
        return {name: group for name, group in groups.items() if group}

    def wrong(self) -> list[str]:
        """Everything that did not end as it should."""
        killed = [
            f"kill of {kill.stage} ({kill.victim}) at {kill.phase!r}: {kills.trouble(kill)}" for kill in self.kills
        ]
        others = [f"{each.fault}, {each.stage}, {each.case}: {each.wrong}" for each in self.outcomes]
        return [line for line in killed + others if not line.endswith(": ")]

    def report(self, seconds: float) -> None:
        """Print the figures, and a histogram for each stage that was killed."""
        for name, killed in self.by_stage().items():
            after = sum(kill.event >= kill.first for kill in killed)
            mended = sum(not kills.trouble(kill) for kill in killed)
            print(f"{name}: {len(killed)} kills, {after} after the first output byte, {mended} mended, "
                  f"{sum(bool(kill.helped) for kill in killed)} of them with help")  # fmt: skip
            print("\n".join(kills.histogram(killed)))
        tried = Counter(outcome.fault for outcome in self.outcomes)
        for fault, number in tried.items():
            mended = sum(not outcome.wrong for outcome in self.outcomes if outcome.fault == fault)
            print(f"{fault}: {number} tried, {mended} mended")
        for line in self.wrong():
            print(f"WRONG: {line}")
        print(f"{len(self.kills) + len(self.outcomes)} faults in {seconds / 60:.0f} minutes, {len(self.wrong())} wrong")


if __name__ == "__main__":
    script.run("faults", main)
