"""A project that ran once for all files of this folder, and copies of it."""

import itertools
import shutil
from pathlib import Path

import pytest

from tests.helpers.pictures import picture
from tests.helpers.project import Project, copy_project
from tests.helpers.small_run import small
from tests.helpers.user_home import PHOTOS, Home


@pytest.fixture(scope="package")
def built_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Photographs of three classes and one of none, indexed and committed. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("built")
    seeds = itertools.count()
    for label, count in PHOTOS.items():
        (folder / "photos" / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(next(seeds)).save(folder / "photos" / label / f"{number}.png")
    project = copy_project(folder / "project")
    small(project)
    project.set(download__dataset="folder", download__folder="../photos", download__limit_per_class=0,
                extract__runtime="openvino")  # fmt: skip
    assert project.repro("index") == ["download", "preprocess", "model", "extract", "index"]
    project.commit("built")
    return Home(project)


@pytest.fixture
def home(built_home: Home, tmp_path: Path) -> Home:
    """A copy of it."""
    shutil.copytree(built_home.folder.parent, tmp_path / "home", symlinks=True)
    return Home(Project(tmp_path / "home" / "project"))


@pytest.fixture(scope="package")
def untouched(built_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A copy that only mistakes are made in, and nothing comes of them."""
    folder = tmp_path_factory.mktemp("untouched") / "home"
    shutil.copytree(built_home.folder.parent, folder, symlinks=True)
    return Home(Project(folder / "project"))
