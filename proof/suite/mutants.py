"""Make small errors in the code that computes figures, one at a time, and list those that no test notices.

    python proof/suite/mutants.py                    all of it: 20 minutes on 2 cores
    python proof/suite/mutants.py --jobs 4           mutants at a time (default: 2)
    python proof/suite/mutants.py --report           only what a run has found so far
    python proof/suite/mutants.py 'lookalike.evaluation.metrics.*'

pyproject.toml, [tool.mutmut], says which modules and by which tests; what has been tried is kept in mutants/, so that
a run that was stopped goes on, and one after a change of the code tries the functions that changed. After a change of
the tests, name what survived to try it again, or delete mutants/: only then is it noted anew which functions a test
that was there before calls. A mutant is killed if a test fails with it, if it takes far longer than the tests do, or if
it crashes. Survivors must be in proof/suite/survivors.txt, with the reason why no test can tell them from the code.
Exits 1 for one that is not there, or where fewer than 90 % of those tried are killed.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = ROOT / "proof/suite/survivors.txt"
LEAST = 0.9
KILLED = ("killed", "timeout", "segfault", "suspicious")  # the last: an exit status that is none of pytest's, a crash

Change = tuple[str, tuple[str, ...]]  # the function, and the changed lines of its diff


def main() -> None:
    """Run mutmut, count by module, and compare the survivors with those that are explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these mutants, tried again; * stands for anything")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="try nothing")
    args = parser.parse_args()
    if not args.report:
        # One thread each: two of them would wait for one another on the same cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [*_mutmut(), "run", "--max-children", str(args.jobs), *args.names]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    sys.exit(_report())


def _mutmut() -> list[str]:
    command = Path(sys.executable).parent / "mutmut"
    if not command.exists():
        sys.exit("mutants: error: mutmut is not installed; pip install --require-hashes -r requirements/proof.txt")
    return [str(command)]


def _ask(*arguments: str) -> str:
    return subprocess.run([*_mutmut(), *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _report() -> int:
    """Print what is known, and return the exit status."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for name, status in re.findall(r"^ *(\S+): (.+)$", _ask("results", "--all", "true"), re.MULTILINE):
        module = re.sub(r"\.x(_|ǁ).*", "", name)
        counts[module]["killed" if status in KILLED else status] += 1
        if status not in (*KILLED, "not checked"):
            survivors.append((module, name, status))
    explained, unknown = _explained(), []
    for module, name, status in survivors:
        change = _change(name)
        if change in explained:
            counts[module]["explained"] += 1
        else:
            unknown.append((name, status, change))
    print(f"{'module':32}  made  tried  killed  explained  share killed")
    low = []
    for module, found in sorted(counts.items()):
        made = found.total() - found["explained"]
        tried = made - found["not checked"]
        share = found["killed"] / max(tried, 1)
        low += [module] * (share < LEAST)
        print(f"{module:32} {made:5} {tried:6} {found['killed']:7} {found['explained']:10} {share:13.1%}")
    for name, status, (function, lines) in unknown:
        print(f"\n{name}: {status}; kill it, or explain it in {EXPLAINED.name}:", function, *lines, sep="\n")
    return bool(unknown or low)


def _change(name: str) -> Change:
    """What a mutant changes."""
    lines = re.findall(r"^([-+]) +(.*?) *$", _ask("show", name), re.MULTILINE)
    return re.sub(r"__mutmut_\d+$", "", name), tuple(f"{sign} {line}" for sign, line in lines)


def _explained() -> set[Change]:
    """Paragraphs of a function and the changed lines; those that begin with # give the reason for what follows."""
    paragraphs = [block.splitlines() for block in EXPLAINED.read_text(encoding="utf-8").split("\n\n")]
    blocks = [[line for line in lines if line and not line.startswith("#")] for lines in paragraphs]
    return {(lines[0], tuple(lines[1:])) for lines in blocks if lines}


if __name__ == "__main__":
    main()
