"""The graph as DVC reads it: every stage of every dvc.yaml, with the values of params.yaml put in."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage


@dataclass(frozen=True)
class Stage:
    """What a dvc.yaml says of a stage; paths are relative to the project's root."""

    name: str
    description: str
    dvc_yaml: str
    folder: str  # where it runs, "." for the root
    command: str
    deps: frozenset[str]
    sections: frozenset[str]  # of params.yaml
    outs: frozenset[str]

    @property
    def script(self) -> str:
        """The Python file that the command runs."""
        found = re.match(r"python (\S+\.py)\b", self.command)
        if not found:
            raise ValueError(f"{self.dvc_yaml}: {self.name} runs {self.command!r}; it must be python <script> ...")
        return os.path.normpath(Path(self.folder, found[1]))


def stages(root: Path) -> dict[str, Stage]:
    """Every stage of a project, in an order in which they can run."""
    with Repo(str(root)) as repo:
        found = [_stage(stage, root) for stage in repo.index.stages if isinstance(stage, PipelineStage)]
    made = frozenset().union(*(stage.outs for stage in found))
    done: frozenset[str] = frozenset()
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(found):  # DVC has refused a circle
        ready = [stage for stage in found if stage.name not in ordered and (stage.deps & made) <= done]
        ordered |= {stage.name: stage for stage in ready}
        done = done.union(*(stage.outs for stage in ready))
    return ordered


def default_stages(graph: dict[str, Stage]) -> dict[str, Stage]:
    """The stages of the root's dvc.yaml, and those of others whose outputs they need as params.yaml stands."""
    needed: set[str] = set()
    for name, stage in reversed(graph.items()):
        wanted = frozenset().union(*(graph[other].deps for other in needed))
        if stage.dvc_yaml == "dvc.yaml" or stage.outs & wanted:
            needed.add(name)
    return {name: stage for name, stage in graph.items() if name in needed}


def _stage(stage: PipelineStage, root: Path) -> Stage:
    def relative(path: str) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    return Stage(
        stage.name,
        stage.desc or "",
        relative(stage.path),
        relative(stage.wdir),
        stage.cmd,
        frozenset(relative(dep.fs_path) for dep in stage.deps if not isinstance(dep, ParamsDependency)),
        frozenset(name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params),
        frozenset(relative(out.fs_path) for out in stage.outs),
    )
