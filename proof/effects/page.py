"""What changing a key did, and docs/params.md, which tells it for every key."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proof.effects import trials
from proof.effects.stage_runner import Params

ROUNDING = 1e-4  # by which an embedding may move, as a share of its length, for it to be the last bits
HEAD = """# Every setting, and what it touches

Written by `python proof/effects/run.py`, which changes each key alone on a hundred pictures and looks at what re-runs
and which outputs differ then. What a value means, and its range, is said in [params.yaml](../params.yaml).

**Tried** is what the key was changed from and to there. **Re-runs** are the stages, **changes** those of their outputs
that came out different; a stage whose inputs came out the same does not run, which is why a key can stop early. Times
(`metrics/latency.json` and two plots of `benchmark`) differ at every run and are left out of the comparison.
"""
DECIDES = {"results": "", "nothing": " **Changes no result.**", "last bits": " **Moves the last bits at most.**"}


@dataclass(frozen=True)
class Effect:
    """What changing one key did."""

    name: str
    before: Any
    key: trials.Key
    ran: dict[str, list[str]]  # stage that re-ran: its outputs that changed
    wrote: dict[str, int]  # how many outputs that stage has
    moved: float = 0.0  # the largest move of an embedding, as a share of its length
    failed: str = ""  # what a stage said that did not end well

    @property
    def changes(self) -> list[str]:
        """Every artifact that changed."""
        return [out for outs in self.ran.values() for out in outs]

    def problem(self) -> str:
        """What is wrong with it; "" if nothing."""
        tried = f"{self.name}: {self.before!r} -> {self.key.other!r}"
        if self.failed:
            return f"{tried}: {self.failed}"
        if not self.ran:
            return f"{tried} re-ran no stage; a stage that reads it must declare its section in dvc.yaml"
        if self.key.decides == "results" and not self.changes:
            return (
                f"{tried} re-ran {', '.join(self.ran)} and changed no artifact; mend what should read it, or choose "
                "another value or base, or say decides='nothing' in proof/effects/trials.py"
            )
        if self.key.decides == "nothing" and self.changes:
            return f"{tried} must change nothing and changed {', '.join(self.changes)}"
        if self.key.decides == "last bits" and self.moved > ROUNDING:
            return f"{tried} moves embeddings by {self.moved:.1e} of their length, which is more than rounding"
        return ""


def leaves(content: Params, above: str = "") -> dict[str, Any]:
    """Every key of params.yaml with its value, named like index.refine.pca."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= leaves(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found


def comments(text: str) -> dict[str, str]:
    """The first sentence of the comment above each key of params.yaml."""
    found: dict[str, str] = {}
    above: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := re.match(r" *# (.*)", line):
            above.append(match[1].strip())
        elif match := re.match(r"( *)(\w+):", line):
            parents = [parent for parent in parents if parent[0] < len(match[1])] + [(len(match[1]), match[2])]
            sentence = re.split(r"(?<=[a-z`\d)])[.;] (?=[A-Z])|\.$", " ".join(" ".join(above).split()))[0]
            found[".".join(name for _, name in parents)] = sentence
            above = []
        else:
            above = []
    return found


def page(effects: list[Effect], params: Params, text: str, folder: Path) -> str:
    """docs/params.md.

    effects  in the order of params.yaml, whose content and text are `params` and `text`.
    folder   where the small data set lay.
    """
    says, defaults = comments(text), leaves(params)
    lines = [HEAD.rstrip()]
    section = ""
    for effect in effects:
        first, _, rest = effect.name.partition(".")
        if first != section:
            section = first
            columns = ["key", "default", "what it does", "tried", "re-runs", "changes"]
            lines += ["", f"## {section}", "", _row(columns), _row(["---"] * len(columns))]
        cells = [f"`{rest}`", code(defaults[effect.name]), f"{says[effect.name]}.{DECIDES[effect.key.decides]}"]
        tried = f"{code(effect.before, folder)} → {code(effect.key.other, folder)}"
        lines.append(_row([*cells, tried, ", ".join(effect.ran), _changes(effect)]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(value: Any, folder: Path | None = None) -> str:
    """A value as the page writes it; a path below `folder`, and a checksum, without what differs from run to run."""
    said = json.dumps(value, ensure_ascii=False)
    if folder:
        said = said.replace(folder.as_uri(), "file://...")
    said = re.sub(r"(md5|sha256):([0-9a-f]{6})[0-9a-f]+", r"\1:...", said)
    return f"`{said}`"


def _changes(effect: Effect) -> str:
    rest = "; what follows re-runs too, and was not measured" if effect.key.only else ""
    said = []
    for stage, outs in effect.ran.items():
        if outs and len(outs) == effect.wrote[stage] > 2:
            said.append(f"all {len(outs)} of {stage}")
        elif len(outs) > 6:
            said.append(f"{len(outs)} of the {effect.wrote[stage]} of {stage}")
        else:
            said += [f"`{out}`" for out in outs]
    return (", ".join(said) or "nothing") + rest


def rows(text: str) -> dict[str, list[str]]:
    """The rows of docs/params.md: key, its other cells."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| `"):
            name, *cells = line.strip("| ").split(" | ")
            found[f"{section}.{name.strip('`')}"] = cells
    return found


def stale(old: str, new: str) -> list[str]:
    """How a page differs from what was found, a line a difference; the artifacts, the last column, left out.

    They are not looked at in a quick run, and another processor may round a figure of plots/ the other way.
    """
    before, after = rows(old), rows(new)
    told = [f"{name}: not on the page" for name in after.keys() - before.keys()]
    told += [f"{name}: on the page, but no longer in params.yaml" for name in before.keys() - after.keys()]
    for name in after.keys() & before.keys():
        for what, one, other in zip(("default", "text", "trial", "stages"), before[name], after[name], strict=False):
            if one != other:
                told.append(f"{name}: {what}: the page says {one}, but it is {other}")
    return sorted(told)
