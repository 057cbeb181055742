"""Tell what the working tree changes against another commit: stages, settings, figures, curves; as one Markdown page.

Writes report/report.md and one PNG a plot whose data differ. The figures are those of the working tree, so run the
pipeline first; `make report` does.

    make report BASE=main
    python proof/change.py main report

In a GitHub workflow the page is also the summary of the job.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import vl_convert
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.base.files import remove
from proof.reproduce import TIMED

TIMES = ("plots/latency.csv", "plots/operating_curve.csv")  # two runs' times cannot be compared
Lock = dict[str, Any]


def run(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"change: error: {' '.join(command)}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout.strip()


def parts(stage: Lock, kind: str) -> dict[str, str]:
    """The digests of a stage's `deps` or `outs`, or the values of its sections of params.yaml, by name."""
    if kind == "params":
        return {
            name: json.dumps(value, sort_keys=True)
            for name, value in stage.get(kind, {}).get("params.yaml", {}).items()
        }
    return {each["path"]: each["md5"] for each in stage.get(kind, [])}


def different(before: Lock, now: Lock, kind: str) -> list[str]:
    """The names that are not the same on both sides."""
    one, other = parts(before, kind), parts(now, kind)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def stages(before: Lock, now: Lock) -> list[str]:
    """A table of the stages that ran with something else, or gave something else."""
    rows = []
    for name in [*now, *(name for name in before if name not in now)]:
        then, later = before.get(name, {}), now.get(name, {})
        given = [f"`params.yaml: {section}`" for section in different(then, later, "params")]
        given += [f"`{path}`" for path in different(then, later, "deps")]
        made = [f"`{path}`" for path in different(then, later, "outs") if not TIMED.fullmatch(path)]
        if given or made:
            rows.append(f"| `{name}` | {short(given)} | {short(made)} |")
    if not rows:
        return ["No stage has another input or output."]
    return ["| stage | inputs that differ | outputs that differ |", "|---|---|---|", *rows]


def short(names: list[str], most: int = 6) -> str:
    """The first few names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def table(kind: str, base: str) -> str:
    """DVC's own table of differences; nothing if it has no row."""
    text = run("dvc", kind, "diff", base, "--md")
    return text if text.count("\n") >= 2 else ""


def plots(base: str, folder: Path) -> list[str]:
    """Draw each plot of dvc.yaml whose data differ, both versions in one picture; returns how they are shown."""
    shown = []
    graph = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    for name, settings in [each for stage in graph for plot in stage.get("plots", []) for each in plot.items()]:
        if "title" not in settings or name in TIMES or not run("git", "diff", base, "--", name):
            continue
        drawn = run("dvc", "plots", "diff", base, "--targets", name, "--show-vega")
        file = f"{Path(name).stem}.png"
        (folder / file).write_bytes(vl_convert.vegalite_to_png(json.loads(drawn)))
        shown += [f"![{settings['title']}]({file})", ""]
    return shown or ["No curve differs."]


def page(base: str, folder: Path) -> str:
    """The whole page."""
    commit = run("git", "rev-parse", "--short", f"{base}^{{commit}}")
    before = yaml.safe_load(run("git", "show", f"{base}:dvc.lock"))["stages"]
    now = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    status = run("git", "status", "--porcelain", "--", "metrics", "plots", "data").splitlines()
    uncommitted = [path for path in (line.split()[-1] for line in status) if not TIMED.fullmatch(path)]
    committed = yaml.safe_load(run("git", "show", "HEAD:dvc.lock"))["stages"]
    if stages(committed, now) != stages(now, now):  # in more than the hashes of times
        uncommitted.insert(0, "dvc.lock")
    lines = [f"# What changes, against {commit}", ""]
    if uncommitted:
        files = short([f"`{path}`" for path in uncommitted])
        lines += [f"**Not as committed:** this run gave other {files} than the commit has. Run `dvc repro`, commit",
                  "what it writes; on another processor the last bits may differ.", ""]  # fmt: skip
    lines += ["## Stages", "", *stages(before, now), ""]
    lines += ["## Settings", "", table("params", base) or "No setting differs.", ""]
    lines += ["## Figures", "", table("metrics", base) or "No figure differs.", ""]
    return "\n".join([*lines, "## Curves", "", *plots(base, folder)]).rstrip() + "\n"


def main() -> None:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("base", help="the commit or branch to compare with")
    parser.add_argument("folder", type=Path, help="what is written into, anew")
    given = parser.parse_args()
    remove(given.folder)
    given.folder.mkdir(parents=True)
    text = page(given.base, given.folder)
    (given.folder / "report.md").write_text(text, encoding="utf-8")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):  # it shows no picture of this machine's
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write("".join(line for line in text.splitlines(keepends=True) if not line.startswith("![")))
    print(given.folder / "report.md")


if __name__ == "__main__":
    main()
