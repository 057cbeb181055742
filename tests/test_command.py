"""What the command says, and how it ends: in this process, on 24 pictures in three colours."""

import tomllib
from importlib import metadata

import pytest
from conftest import ROOT
from small_collection import run


def test_it_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"lookalike {wanted}\n")

    def unknown(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", unknown)
    done = run("--version")
    assert done.exit_code == 1 and "not installed, so its version is not known: pip install" in str(done.exception)
