"""A served collection for all files of this folder, and copies of it to change."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.served_collection import Server, Where, serving


@pytest.fixture(scope="package", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LOOKALIKE_TOKEN", raising=False)
        yield


@pytest.fixture(scope="package")
def where(tmp_path_factory: pytest.TempPathFactory) -> Where:
    return Where(tmp_path_factory.mktemp("collection")).built()


@pytest.fixture(scope="package")
def server(where: Where) -> Iterator[Server]:
    """One for the tests that leave the collection as it was."""
    with serving(where, "--max-bytes=1000000", "--max-pixels=4000000", "--cors=https://page.example") as running:
        yield running


@pytest.fixture(scope="package")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Where:
    """A collection whose network takes tens of milliseconds."""
    return Where(tmp_path_factory.mktemp("slow")).built(layers=40)


@pytest.fixture
def own(where: Where, tmp_path: Path) -> Where:
    """A collection of the test's own."""
    for name in ("raw", "model", "index"):
        shutil.copytree(where.folder / name, tmp_path / name)
    shutil.copy(where.index.with_suffix(".json"), tmp_path / "index.json")
    return Where(tmp_path)
