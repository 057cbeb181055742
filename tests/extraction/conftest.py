"""A small network for all files of this folder, and a cache of each test's own."""

from pathlib import Path

import pytest

from tests.helpers.small_network import make


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="package")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 192 dimensions that runs in no time."""
    return make(tmp_path_factory.mktemp("network") / "m", layer="block_6_expand_relu")
