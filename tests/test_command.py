"""What the command says, and how it ends: in this process, on 24 pictures in three colours."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from small_collection import Built, run


def test_it_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"lookalike {wanted}\n")

    def unknown(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", unknown)
    done = run("--version")
    assert done.exit_code == 1 and "not installed, so its version is not known: pip install" in str(done.exception)


@pytest.mark.parametrize("name", ["hits.jpg", "hits"])
def test_a_figure_is_called_what_it_is(built: Built, name: str) -> None:
    done = run("similar", "red/03.jpg", "--grid", name)
    assert done.exit_code == 2 and f"the figure is a PNG, so {name} would be misnamed; call it hits.png" in done.stderr
    assert not Path(name).exists()
    assert run("similar", "red/03.jpg", "--grid", "hits.PNG").exit_code == 0
    assert Path("hits.PNG").read_bytes().startswith(b"\x89PNG")


def test_of_more_hits_than_there_are_images_all_are_shown(built: Built) -> None:
    for command, count in ((["search", str(built.picture("red/03.jpg"))], 24), (["similar", "red/03.jpg"], 23)):
        done = run(*command, "-k", "1000")
        assert (done.exit_code, done.stderr, len(done.stdout.splitlines())) == (0, "", count)
