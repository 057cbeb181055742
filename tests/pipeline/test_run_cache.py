"""What ran once never runs again: going back, a grid in a queue, another clone; and what a failed run leaves."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.project import Project, copy_project
from tests.helpers.small_run import small

pytestmark = pytest.mark.slow  # DVC

KEPT = ("data/features", "data/index", "metrics", "plots")
COPIED = ("-C", "data/raw", "-C", "data/processed", "-C", "data/model")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small pipeline that has run once and is committed."""
    project = copy_project(tmp_path_factory.mktemp("run_cache") / "project")
    small(project)
    project.repro()
    project.commit("built")
    return project


@pytest.fixture
def clone(built: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of it, with outputs and DVC's cache."""
    shutil.copytree(built.folder, tmp_path / "clone", symlinks=True)
    yield Project(tmp_path / "clone")


def contents(project: Project) -> dict[str, bytes]:
    """What the stages wrote that DVC or Git keeps, file by file."""
    files = [path for top in KEPT for path in sorted((project.folder / top).rglob("*")) if path.is_file()]
    files += sorted((project.folder / "data").glob("*.json"))
    return {path.relative_to(project.folder).as_posix(): path.read_bytes() for path in files}


def test_settings_that_ran_before_run_nothing(clone: Project) -> None:
    first = contents(clone)
    clone.set(index__refine__pca=8)
    assert sorted(clone.repro()) == ["benchmark", "evaluate", "index"]
    second = contents(clone)
    clone.set(index__refine__pca=16)
    assert clone.repro() == []
    assert contents(clone) == first != second
    clone.set(index__refine__pca=8)
    assert clone.repro() == []
    assert contents(clone) == second
    assert "up to date" in clone.run("dvc", "status").stdout


def test_a_failed_run_is_undone_by_one_command(clone: Project) -> None:
    before = contents(clone)
    clone.set(index__refine__pca=1000)
    assert clone.run("dvc", "repro", check=False).returncode
    assert not (clone.folder / "data/index").exists()
    clone.run("dvc", "checkout")
    assert {name: data for name, data in contents(clone).items() if name.startswith("data/index/")} == {
        name: data for name, data in before.items() if name.startswith("data/index/")
    }
    clone.set(index__refine__pca=16)
    assert clone.repro() == []
    assert contents(clone) == before


def test_a_grid_runs_what_differs_and_nothing_else(clone: Project) -> None:
    """Six experiments in a queue; then two networks, whose images are decoded once."""
    grid = ("-S", "index.refine.pca=4,8,12", "-S", "index.refine.whiten=0,0.5")
    assert ran(clone, *COPIED, *grid) == {"index": 6, "evaluate": 6, "benchmark": 6}
    networks = ("-S", "model.seed=1,2")
    assert ran(clone, *COPIED, *networks) == dict.fromkeys(("model", "extract", "index", "evaluate", "benchmark"), 2)
    shown = clone.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert len(shown) == 8


def ran(project: Project, *arguments: str) -> dict[str, int]:
    """Queue experiments and run them; returns how often each stage ran."""
    project.run("dvc", "exp", "run", "--quiet", "--queue", *arguments)
    output = project.run("dvc", "exp", "run", "--run-all").stdout
    return dict(Counter(re.findall(r"Running stage '(\w+)'", output)))


def test_clones_that_share_a_cache_share_what_ran(clone: Project, tmp_path: Path) -> None:
    clone.set(index__refine__pca=8)
    clone.repro()
    expected = contents(clone)
    clone.run("git", "checkout", "--quiet", ".")
    clone.run("git", "clone", "--quiet", ".", str(tmp_path / "other"))
    other = Project(tmp_path / "other")
    other.run("dvc", "cache", "dir", "--local", str(clone.folder / ".dvc/cache"))
    other.set(index__refine__pca=8)
    assert other.repro() == ["download", "preprocess", "model"]  # which nobody keeps
    assert contents(other) == expected


def test_an_experiment_is_taken_over_by_another_clone(clone: Project, tmp_path: Path) -> None:
    clone.run("dvc", "exp", "run", "--name", "eight", "-S", "index.refine.pca=8")
    expected = contents(clone)
    clone.run("git", "checkout", "--quiet", ".")
    clone.run("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "server"))
    clone.run("git", "remote", "add", "origin", str(tmp_path / "server"))
    clone.run("dvc", "remote", "modify", "storage", "url", str(tmp_path / "team"))
    clone.commit("a store of our own")
    clone.run("git", "push", "--quiet", "origin", "main")
    clone.run("dvc", "exp", "push", "origin", "eight")
    clone.run("git", "clone", "--quiet", str(tmp_path / "server"), str(tmp_path / "other"))
    other = Project(tmp_path / "other")
    other.run("dvc", "exp", "pull", "origin", "eight")
    other.run("dvc", "exp", "apply", "eight")
    assert contents(other) == expected
    assert other.repro("--allow-missing") == []
