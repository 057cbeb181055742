"""A version of the search is registered, fetched by name on another machine, served, promoted and rolled back."""

import json
from pathlib import Path

import pytest

from tests.helpers.project import Project, copy_project
from tests.helpers.small_run import small

pytestmark = pytest.mark.slow  # DVC

QUERY = "data/raw/3/digit_0003.png"


def register(project: Project, version: str) -> None:
    """As docs/production.md says."""
    project.run("lookalike", "bundle", "data/served")
    project.run("dvc", "add", "data/served")
    project.commit(f"The search, {version}")
    project.run("dvc", "push", "data/served")
    project.run("gto", "register", "search", "--version", version)


def test_a_version_is_promoted_and_rolled_back(tmp_path: Path) -> None:
    team = copy_project(tmp_path / "team")
    team.run("dvc", "remote", "modify", "storage", "url", str(tmp_path / "store"))
    small(team)
    team.repro()
    team.commit("built")
    register(team, "v1.0.0")
    team.set(index__refine__pca=8)
    team.repro()
    register(team, "v2.0.0")
    team.run("gto", "assign", "search", "--version", "v2.0.0", "--stage", "prod")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def fetched(folder: str, *which: str) -> int:
        """Fetch it into a folder without a project and ask it; returns the dimensions of its index."""
        team.run("dvc", "artifacts", "get", str(team.folder), "search", *which, "--out", str(elsewhere / folder))
        places = ("--index", str(elsewhere / folder / "index"), "--model", str(elsewhere / folder / "model"))
        found = team.run("lookalike", "search", QUERY, "-k", "1", *places).stdout
        assert json.loads(found)["path"] == "3/digit_0003.png"
        return int(json.loads((elsewhere / folder / "index/index.json").read_text())["dim"])

    assert fetched("first", "--rev", "v1.0.0") == 16
    assert fetched("production", "--stage", "prod") == 8
    team.run("gto", "assign", "search", "--version", "v1.0.0", "--stage", "prod")
    assert fetched("rolled_back", "--stage", "prod") == 16
    told = json.loads(team.run("gto", "show", "--json").stdout)
    assert told["search"]["version"] == "v2.0.0" and told["search"]["stage"]["prod"] == "v1.0.0"
