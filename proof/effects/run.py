"""Try every key of params.yaml on a small data set: which stages re-run, and whose artifacts change.

Writes  docs/params.md      a table for each section

    python proof/effects/run.py             # measure, and write the page
    python proof/effects/run.py --check     # measure no more than that takes, and compare with the page

Ends with status 1 where a key that is declared to decide results changes none, where one that must not changes any, or,
with --check, where the page is out of date. What each key is tried with is in proof/effects/trials.py.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import load_collection
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_folder
from proof.effects import trials
from proof.effects.page import Effect, leaves, page, stale
from proof.effects.stage_runner import GIVEN, Bench, Params, Ran, StageFailedError, Turn, changed, look_up
from proof.faults.sandbox import timeless
from proof.reproduce import TIMED

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/params.md"


def check_complete(params: Params, tried: dict[str, trials.Key]) -> None:
    """Raise LookalikeError for a key that nothing tries, or a trial of no key."""
    for name in leaves(params).keys() - tried.keys():
        raise LookalikeError(
            f"params.yaml has {name}, which nothing tries; add to keys() in proof/effects/trials.py a line "
            f'"{name}": Key(<another value that changes a result on the small data set>), and to BASE what makes it '
            "small and quick; then: python proof/effects/run.py"
        )
    for name in tried.keys() - leaves(params).keys():
        raise LookalikeError(f"proof/effects/trials.py tries {name}, which params.yaml has no more; delete the line")


def measure(
    bench: Bench, params: Params, tried: dict[str, trials.Key], workers: int, *, quick: bool = False
) -> list[Effect]:
    """Change each key alone, from `params`; results in the order of params.yaml.

    quick  look no further along the graph once an artifact has changed: enough to see whether a key decides anything,
           and which stages re-run.
    """

    def effect(name: str) -> Effect:
        key = tried[name]
        before = changed(params, key.base)
        try:
            one, other = (
                bench.run(each, key.given, key.only)
                for each in (before, changed(before, {name: key.other} | key.along))
            )
            return compare(name, look_up(before, name), key, one, other, quick=quick)
        except StageFailedError as error:
            return Effect(name, look_up(before, name), key, {}, {}, failed=str(error))

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(effect, leaves(params)))


def compare(
    name: str, value: Any, key: trials.Key, before: dict[str, Turn], after: dict[str, Turn], *, quick: bool
) -> Effect:
    """What differs between two runs of the graph."""
    ran: dict[str, list[str]] = {}
    wrote: dict[str, int] = {}
    for stage, turn in after.items():
        if stage in before and before[stage].inputs == turn.inputs:
            continue
        ran[stage] = []
        if not (quick and any(ran.values())):
            new = turn.ran()
            ran[stage] = [out for out in new.outs if stage not in before or differ(out, before[stage].ran(), new)]
            wrote[stage] = len(new.outs)
    moved = 0.0
    if key.decides == "last bits":
        rows = [np.asarray(load_collection(each["extract"].ran().folder / "data/features").features, np.float64)
                for each in (before, after)]  # fmt: skip
        lengths = np.linalg.norm(rows[0], axis=1)
        moved = float((np.linalg.norm(rows[1] - rows[0], axis=1) / lengths).max())
    return Effect(name, value, key, ran, wrote, moved)


def differ(out: str, before: Ran, after: Ran) -> bool:
    """Whether an output differs, apart from the times in it."""
    if TIMED.fullmatch(out):
        return timeless(before.folder / out) != timeless(after.folder / out)
    return before.outs[out] != after.outs[out]


# --- the command -----------------------------------------------------------------------------------------------------


def prepared(folder: Path) -> tuple[Bench, Params, dict[str, trials.Key]]:
    """A bench with the small data set in `folder`, its settings, and what each key is tried with."""
    small_folder = folder / GIVEN
    bench = Bench(ROOT, folder)
    if not small_folder.exists():
        with new_folder(small_folder) as new:
            trials.make(new)
            if bench.process(trials.make_weights, new):
                raise LookalikeError("the small data set's weights could not be written; the reason stands above")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tried = trials.keys(small_folder)
    check_complete(params, tried)
    return bench, changed(params, trials.BASE), tried


def measured(folder: Path, workers: int = 0, *, quick: bool = False) -> tuple[list[Effect], str]:
    """Try every key in a new folder; returns the effects and the page, whose last column a quick look leaves open."""
    bench, params, tried = prepared(folder)
    effects = measure(bench, params, tried, workers or os.cpu_count() or 1, quick=quick)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return effects, page(effects, yaml.safe_load(text), text, folder / GIVEN)


def main() -> int:
    """Read the arguments, measure, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with docs/params.md, its last column apart")
    parser.add_argument("--folder", type=Path, help="keep the runs there, and use those of an earlier call")
    parser.add_argument("--workers", type=int, default=0, help="stages at a time; 0 for one a core")
    args = parser.parse_args()
    try:
        with nullcontext(args.folder) if args.folder else TemporaryDirectory(prefix="effects") as folder:
            effects, text = measured(Path(folder).absolute(), args.workers, quick=args.check)
    except LookalikeError as error:
        sys.exit(f"effects: error: {error}")
    problems = list(filter(None, (effect.problem() for effect in effects)))
    if args.check:
        old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        problems += [f"docs/params.md is out of date: {line}" for line in stale(old, text)]
    elif not any(effect.failed for effect in effects):
        PAGE.write_text(text, encoding="utf-8")
    for line in problems:
        print(line, file=sys.stderr)
    print(f"{len(effects)} keys tried, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
