"""What the command says, and how it ends: in this process, on 24 pictures in three colours."""

import json
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.artifacts.descriptions import load_embedding
from lookalike.cli.grid import SIDE
from lookalike.collection.picture_search import MAX_PIXELS, Pictures
from tests.helpers.project import ROOT
from tests.helpers.small_collection import REFINE, Built, coloured, run, write_index


def test_it_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"lookalike {wanted}\n")

    def unknown(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", unknown)
    done = run("--version")
    assert done.exit_code == 1 and "not installed, so its version is not known: pip install" in str(done.exception)


def test_a_server_accepts_no_picture_too_large_to_be_read_again() -> None:
    done = run("serve", "--index", "nowhere", "--max-pixels", str(MAX_PIXELS + 1))
    assert done.exit_code == 2 and f"{MAX_PIXELS + 1} is not in the range 1<=x<={MAX_PIXELS}" in done.stderr
    done = run("serve", "--index", "nowhere", "--max-pixels", str(MAX_PIXELS))
    assert done.exit_code == 1 and "nowhere does not exist" in str(done.exception)


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


def test_a_picture_that_cannot_be_read_stops_no_other(built: Built, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "c.jpg", "e.jpg"):
        coloured("green", ord(name[0])).save(photos / name)
    (photos / "b.jpg").write_bytes(b"broken")
    (photos / "d.jpg").symlink_to(photos / "e.jpg")
    command = ["search", "photos", "gone.png", "-k", "1", "--grid", "hits.png"]
    done = run(*command)
    assert done.exit_code == 1
    assert [line.partition(": not an image")[0] for line in done.stderr.splitlines()] == [
        "lookalike: error: photos/b.jpg", "lookalike: error: gone.png: No such file or directory"
    ]  # fmt: skip
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(hit["query"], hit["label"]) for hit in hits] == [(f"photos/{name}.jpg", "green") for name in "acde"]
    assert Image.open("hits.png").size[1] > 4 * SIDE  # a row each
    done = run("add", "photos", "--label", "new")
    assert done.exit_code == 1 and done.stderr.endswith("lookalike: 4 images added\n")
    assert done.stderr.startswith("lookalike: error: photos/b.jpg: not an image in a known format")
    done = run("search", "photos/b.jpg", "--grid", "none.png")  # alone, it is an error as any other
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1) and not Path("none.png").exists()


def test_an_interrupted_addition_keeps_what_was_done(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, real, seen = tmp_path / "photos", Pictures.embed, []
    photos.mkdir()
    for name in "abcd":
        coloured("green", ord(name)).save(photos / f"{name}.png")

    def embed(self: Pictures, content: bytes) -> np.ndarray:
        seen.append(content)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "embed", embed)
        done = run("add", "photos", "--label", "new")
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.endswith("lookalike: interrupted; what was done until then is kept\n")
    hits = [json.loads(line)["path"] for line in run("search", "photos/a.png", "-k", "30").stdout.splitlines()]
    assert len(hits) == 26 and {"new/a.png", "new/b.png"} < set(hits)
    assert "2 of 4 had been added before" in run("add", "photos", "--label", "new").stderr


def test_without_streamlit_the_page_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.ui.launch.find_spec", lambda _: None)
    done = run("ui")
    assert done.exit_code == 1 and "error: Streamlit is not installed: pip install" in str(done.exception)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff", b'{"backbone": "Squares"}'])
def test_a_broken_description_of_the_network_is_named(built: Built, content: bytes) -> None:
    path = built.folder / "model/model.json"
    path.write_bytes(content)
    done = run("search", str(built.picture("red/03.jpg")), *built.options)
    said = f"{path} does not describe a network; make it anew: dvc repro --force model"
    assert (done.exit_code, str(done.exception)) == (1, f"lookalike: error: {said}")
    assert run("similar", "red/03.jpg", *built.options).exit_code == 0  # which needs no network


@pytest.mark.parametrize("refined", [{}, {"augment": 4}, {"expand": 4}])
def test_a_picture_reaches_1_with_itself_only_unrefined(built: Built, refined: dict[str, int]) -> None:
    """As docs/cli.md and the help say."""
    raw, index = built.folder / "raw", built.folder / "index"
    pictures = Pictures(index, built.folder / "model", built.folder / "changes")
    features = {path.relative_to(raw).as_posix(): pictures.embed(path.read_bytes()) for path in raw.rglob("*.jpg")}
    write_index(index, features, load_embedding(index), REFINE | refined)
    hits = [json.loads(line) for line in run("search", str(raw / "red/03.jpg"), "-k", "24").stdout.splitlines()]
    own = next(hit["cosine"] for hit in hits if hit["path"] == "red/03.jpg")
    assert own > 1 - 1e-6 if not refined else 0.9 < own < 1 - 1e-6
    if not refined:
        assert hits[0]["path"] == "red/03.jpg"


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(built: Built, kind: str) -> None:
    coloured("red", 1).save(f"moving.{kind}", save_all=True, append_images=[coloured("blue", 1)])
    done = run("search", f"moving.{kind}", "-k", "5")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["red"] * 5
