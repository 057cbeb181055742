"""SIGKILL at chosen points of a stage's writing, seen by strace; and what the next `dvc repro` makes of it."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lookalike.base.errors import LookalikeError
from lookalike.base.files import PARTIAL
from proof.faults.sandbox import Sandbox
from proof.patience import patience

Victim = Literal["stage", "group"]  # the stage's process alone, or DVC and all that it started

WRITES = ("write", "writev", "pwrite64", "pwritev", "sendfile", "copy_file_range", "ftruncate", "fallocate")
MOVES = ("rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "link", "linkat")
# Held for so many microseconds after each of them, so that the kill arrives before the next; moves are few and quick.
HOLD = {WRITES: 1000, MOVES: 5000}
CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")
HALF = re.compile(r"(\d+) +(\w+)\((.*?),? *<unfinished \.\.\.>$")
REST = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)$")
DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<([^>]*)>")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
DVC = "dvc"  # not a stage: the kills that hit DVC itself, while it keeps and locks what `index` wrote
DVC_STAGE = "index"
KEPT, LOCKED = "dvc writes .dvc/cache", "dvc writes dvc.lock"  # what counts as DVC's output


@dataclass(frozen=True)
class Event:
    """One thing that was written: the thread, the phase it belongs to, and whether it was a byte of an output."""

    thread: int
    phase: str
    output: bool


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and what came of it."""

    stage: str
    victim: Victim
    stale: bool
    phase: str
    event: int  # the last one that was seen, counted from 0
    first: int  # the event that wrote the first byte of an output
    events: int  # of an undisturbed run
    left: list[str]  # unfinished files that it left
    orphans: list[str]
    wrong: str  # after the next `dvc repro`; "" if all is well
    helped: str  # the command that it took besides, or ""


def check_tools() -> None:
    """Raise LookalikeError unless a process can be traced here."""
    probe = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "true"]
    if not shutil.which("strace") or subprocess.run(probe, check=False, capture_output=True).returncode:
        raise LookalikeError("strace, which finds the moments to kill at, is not to be had here: apt install strace")


def events_of(lines: Any, sandbox: Sandbox, stage: str) -> Any:
    """Turn strace's lines into Events, one at a time; lines of other files are left out."""
    halves: dict[str, str] = {}
    for line in lines:
        if half := HALF.match(line):
            halves[half[1]] = half[3]
            continue
        if rest := REST.match(line):
            line = f"{rest[1]} {rest[2]}({halves.pop(rest[1], '')}{rest[3]}"
        call = CALL.match(line)
        if call and int(call[4]) >= 0:
            path = target(call[2], call[3], sandbox.work)
            phase = phase_of(call[2], path, sandbox, stage) if path else ""
            if phase:
                output = call[2] in WRITES and phase.startswith(("write ", KEPT, LOCKED))
                yield Event(int(call[1]), phase, output)


def target(name: str, arguments: str, work: Path) -> Path | None:
    """The path that a system call changed, made absolute; of a rename, its new name."""
    described, quoted = DESCRIPTOR.findall(arguments), QUOTED.findall(arguments)
    if name in WRITES:
        path = described[-1 if name == "copy_file_range" else 0] if described else ""
        return Path(path) if path.startswith("/") else None  # else a pipe
    if not quoted:
        return None
    return Path(described[-1] if described else work, quoted[-1])


def phase_of(call: str, path: Path, sandbox: Sandbox, stage: str) -> str:
    """A name for what a stage is doing when it changes a path; "" for what is no part of its writing."""
    if path.is_relative_to(sandbox.cache):
        return "keep embeddings"
    if not path.is_relative_to(sandbox.work):
        return ""
    parts = path.relative_to(sandbox.work).parts
    if stage == DVC:
        return f"dvc writes {'/'.join(parts[:3])}" if parts[0] in (".dvc", "dvc.lock") else ""
    if parts[0] not in ("data", "metrics", "plots") and not parts[0].endswith(PARTIAL):
        return ""
    partial = next((number for number, part in enumerate(parts) if part.endswith(PARTIAL)), None)
    if partial is None:
        if call.startswith("rename"):
            return f"put {'/'.join(parts[:2])} in place" if parts[0] != "plots" else "put plots in place"
        return f"remove the old {'/'.join(parts[:2])}"
    below = parts[partial : partial + 2]
    name = "/".join(part.removesuffix(PARTIAL) for part in below)
    if call in WRITES or call.startswith("rename"):
        return f"write {name}"
    return "prepare" if call.startswith("mkdir") else "clear up"


def moments(events: list[Event], count: int) -> list[tuple[str, int]]:
    """Choose where to kill: `count` pairs of a phase and the number of an event in it.

    A quarter at most before the first byte of an output, the others after it. Each phase has one, as far as there are
    enough; the others go where there is most to hit, evenly within a phase.
    """
    first = first_byte(events)
    early = min(count // 4, first)
    return [*spread(events[:first], early, {}), *spread(events[first:], count - early, Counter(
        event.phase for event in events[:first]))]  # fmt: skip


def spread(events: list[Event], count: int, before: dict[str, int]) -> list[tuple[str, int]]:
    """`count` events, phase by phase; `before` says how many of a phase came earlier than these."""
    sizes = Counter(event.phase for event in events)
    phases = list(sizes)
    if len(phases) > count:
        phases = [phases[number * len(phases) // count] for number in range(count)]
    shares = dict.fromkeys(phases, 1)
    for _ in range(count - len(phases)):
        open_ones = [phase for phase in phases if shares[phase] < sizes[phase]] or phases
        shares[max(open_ones, key=lambda phase: sizes[phase] ** 0.5 / shares[phase])] += 1
    return [
        (phase, before.get(phase, 0) + number * sizes[phase] // share)
        for phase, share in shares.items() for number in range(share)
    ]  # fmt: skip


def first_byte(events: list[Event]) -> int:
    """Number of the event that wrote the first byte of an output."""
    return next((number for number, event in enumerate(events) if event.output), 0)


class Traced:
    """Runs of a stage, or of DVC itself, in a sandbox under strace."""

    def __init__(self, sandbox: Sandbox, stage: str) -> None:
        self.sandbox, self.stage = sandbox, stage
        tools = sandbox.folder / "tools"
        self._pipe, self.log = tools / "pipe", tools / "log"
        if not tools.exists():
            tools.mkdir()
            os.mkfifo(self._pipe)
        calls = ",".join(WRITES + MOVES)
        holds = " ".join(f"-e inject={','.join(names)}:delay_exit={hold}" for names, hold in HOLD.items())
        self._strace = f"strace -f --seccomp-bpf -qq -y -s0 -e signal=none -e trace={calls} {holds} -o {self._pipe}"
        self._environment = dict(sandbox.environment)
        wrapper = tools / "python"
        if stage == DVC:
            wrapper.unlink(missing_ok=True)
        else:  # DVC finds this one first, and so does nobody else
            wrapper.write_text(f'#!/bin/sh\nexec {self._strace} {sys.executable} "$@"\n')
            wrapper.chmod(0o755)
            self._environment["PATH"] = f"{tools}{os.pathsep}{self._environment['PATH']}"

    def run(self, at: tuple[str, int] | None = None, victim: Victim = "stage") -> tuple[list[Event], int]:
        """Run until event number `at[1]` of phase `at[0]`, then kill; without `at`, to the end.

        To be killed alone, the stage runs as DVC would run it; to be killed with DVC, under `dvc repro`. Returns the
        events seen, and the exit status.
        """
        traced = [*self._strace.split(), sys.executable]
        if self.stage == DVC:
            command = [*traced, "-m", "dvc", "repro", DVC_STAGE]
        elif victim == "stage":
            command = [*traced, *self.sandbox.stages[self.stage].command[1:]]
        else:
            command = ["dvc", "repro", self.stage]
        seen: list[Event] = []
        counts: Counter[str] = Counter()
        reader = os.open(self._pipe, os.O_RDONLY | os.O_NONBLOCK)
        with self.log.open("wb") as log, subprocess.Popen(
            command, cwd=self.sandbox.work, env=self._environment, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        ) as process:  # fmt: skip
            for event in events_of(self._lines(reader, process), self.sandbox, self.stage):
                seen.append(event)
                counts[event.phase] += 1
                if at and event.phase == at[0] and counts[at[0]] == at[1] + 1:
                    if victim == "group":
                        os.killpg(process.pid, signal.SIGKILL)
                    else:
                        os.kill(event.thread, signal.SIGKILL)
            status = process.wait()
        os.close(reader)
        wait_for_group(process.pid)
        return seen, status

    @staticmethod
    def _lines(reader: int, process: subprocess.Popen[bytes]) -> Any:
        rest = b""
        while True:
            ended = process.poll() is not None
            select.select([reader], [], [], 0.2)
            try:
                block = os.read(reader, 1 << 16)
            except BlockingIOError:  # a writer is there, and silent
                continue
            if not block:
                if ended:
                    return
                select.select([], [], [], 0.05)  # no writer yet, or no longer
                continue
            *lines, rest = (rest + block).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


def wait_for_group(group: int) -> None:
    """Wait until no process of a group is left, not even as a zombie, which to DVC is one that holds its locks."""
    deadline = time.monotonic() + patience(60)
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def kill(traced: Traced, at: tuple[str, int], victim: Victim, stale: bool, calm: list[Event]) -> Kill | None:
    """Kill once and repair; None if the moment did not come this time.

    calm  the events of an undisturbed run from the same start.
    """
    sandbox, stage = traced.sandbox, traced.stage
    sandbox.start(DVC_STAGE if stage == DVC else stage, stale)
    seen, status = traced.run(at, victim)
    if status == 0:
        return None
    orphans = sandbox.processes()
    left = sandbox.partials()
    result = stage, victim, stale, seen[-1].phase, len(seen) - 1, first_byte(calm), len(calm), left, orphans
    return Kill(*result, *sandbox.repair())


def kills(sandbox: Sandbox, stage: str, count: int, tell: Any) -> list[Kill]:
    """Kill a stage `count` times, in turn alone and with DVC, over old outputs and over none."""
    traced = Traced(sandbox, stage)
    victims: list[Victim] = ["group"] if stage == DVC else ["stage", "group"]
    done: list[Kill] = []
    for stale in (True, False):
        sandbox.start(DVC_STAGE if stage == DVC else stage, stale)
        calm, status = traced.run()
        if status:
            said = traced.log.read_text(encoding="utf-8", errors="replace").strip()
            raise RuntimeError(f"{stage}: the traced run that nobody disturbed exits {status}:\n{said}")
        wrong = [name for name in sandbox.differences() if not name.startswith("dvc.lock")]
        if wrong:
            raise RuntimeError(f"{stage}: the traced run that nobody disturbed differs: {wrong}")
        wanted = count - count // 2 if stale else count // 2
        chosen = moments(calm, wanted)
        others = [at for at in moments(calm, 4 * wanted) if at not in chosen]  # for moments that do not come again
        hit = 0
        for at in [*chosen, *others]:
            victim = victims[len(done) % len(victims)]
            result = kill(traced, at, victim, stale, calm) or kill(traced, (at[0], at[1] // 2), victim, stale, calm)
            if result:
                done.append(result)
                tell(result)
                hit += 1
            if hit == wanted:
                break
    return done


def trouble(killed: Kill) -> str:
    """What did not end as it should; "" if nothing."""
    return "; ".join([killed.wrong] * bool(killed.wrong) + [f"still runs: {line}" for line in killed.orphans])


def histogram(found: list[Kill]) -> list[str]:
    """Lines for a person: how the kills of one stage lie over its phases, and over tenths of its writing."""
    early = sum(kill.event < kill.first for kill in found)
    tenths = Counter(
        min(9, 10 * (kill.event - kill.first) // max(1, kill.events - kill.first))
        for kill in found if kill.event >= kill.first
    )  # fmt: skip
    lines = [f"  before the first output byte {early}; after it, by tenths of the events: "
             + " ".join(str(tenths[tenth]) for tenth in range(10))]  # fmt: skip
    for phase, number in Counter(kill.phase for kill in found).items():
        lines.append(f"  {number:3}  {'#' * number:24} {phase}")
    return lines


def summary(found: list[Kill]) -> dict[str, Any]:
    """For JSON: counts, and every kill."""
    return {
        "kills": len(found),
        "after_first_output_byte": sum(kill.event >= kill.first for kill in found),
        "of_the_stage_alone": sum(kill.victim == "stage" for kill in found),
        "over_old_outputs": sum(kill.stale for kill in found),
        "left_something_unfinished": sum(bool(kill.left) for kill in found),
        "took_help": [kill.helped for kill in found if kill.helped],
        "wrong": [trouble(kill) for kill in found if trouble(kill)],
        "each": [asdict(kill) for kill in found],
    }
