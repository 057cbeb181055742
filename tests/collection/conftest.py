"""A small index for all files of this folder, copies of it, and a cache of each test's own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.collection import verify
from tests.helpers.changed_index import Built, build
from tests.helpers.traced_index import write_index


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="package")
def built_index(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """60 images, compared one by one."""
    return build(tmp_path_factory.mktemp("built") / "index")


@pytest.fixture
def changes() -> Iterator[Path]:
    """A folder for changes; in memory where the system has one there: waiting for the disk takes most of the time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder) / "changes"


@pytest.fixture(scope="package")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two indexes, both valid."""
    folder = tmp_path_factory.mktemp("built")
    return write_index(folder / "index", 0), write_index(folder / "another", 1)


@pytest.fixture
def index(traced: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the first, and a cache that knows nothing."""
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "index"
    shutil.copytree(traced[0], folder)
    shutil.copy(verify.trace_of(traced[0]), verify.trace_of(folder))
    return folder
