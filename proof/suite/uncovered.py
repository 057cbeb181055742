"""List the lines and branches that no test takes, and are not explained: the last step of `make coverage`.

    python proof/suite/uncovered.py

Reads .coverage, as `coverage combine` leaves it. What no test takes must be in proof/suite/uncovered.txt, with the
reason; exits 1 for what is not there. What is explained and was taken all the same is listed too: a race or a machine
with a GPU may take it now and then; otherwise its explanation can go.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = ROOT / "proof/suite/uncovered.txt"

Place = tuple[str, str]  # the file, and its line as it reads


def main() -> None:
    """Compare what was measured with what is explained."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    explained, found = set(_explained()), list(_missed())
    unknown = [(place, number) for place, number in found if place not in explained]
    taken = sorted(explained - {place for place, _ in found})
    for file, line in taken:
        print(f"{file}: {line}\n    is explained in {EXPLAINED.name}, and taken")
    for (file, line), number in unknown:
        print(f"{file}:{number}: {line}\n    is taken by no test; write one, or explain it in {EXPLAINED.name}")
    print(f"{len(found)} lines and branches are taken by no test, {len(found) - len(unknown)} of them explained")
    sys.exit(bool(unknown))


def _explained() -> Iterator[Place]:
    """Lines `file: source`; those that begin with # give the reason for what follows."""
    for line in EXPLAINED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            file, _, source = line.partition(": ")
            if source not in map(str.strip, (ROOT / file).read_text(encoding="utf-8").splitlines()):
                sys.exit(f"uncovered: error: {EXPLAINED}: there is no line {source!r} in {file}; what became of it?")
            yield file, source


def _missed() -> Iterator[tuple[Place, int]]:
    """What was not taken, with its line's number; a branch is the line that it leaves."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "coverage", "json", "--quiet", "--fail-under", "0", "-o", file.name]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit("uncovered: error: nothing is measured; make coverage")
        measured = json.load(file)["files"]
    for name, each in sorted(measured.items()):
        lines = set(each["missing_lines"])
        branches = {start for start, end in each["missing_branches"] if not {start, end} & lines}
        source = (ROOT / name).read_text(encoding="utf-8").splitlines()
        yield from (((name, source[number - 1].strip()), number) for number in sorted(lines | branches))


if __name__ == "__main__":
    main()
